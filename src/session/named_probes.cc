#include "session/named_probes.h"

#include <algorithm>
#include <cstring>

namespace spile::session {

namespace {

using bundle::ActionKind;
using bundle::ProbeKind;
using Record = std::vector<uint8_t>;

/// What a test sent: kept until it is known whether anybody is to see it.
Result<std::vector<Record>> take_records(engine::Trace& trace) {
  std::vector<Record> records;
  auto keep = [&](std::span<const uint8_t> record) {
    records.emplace_back(record.begin(), record.end());
  };
  SPILE_TRY_VOID(trace.poll(std::chrono::milliseconds(0), keep));
  return records;
}

bool tells_error(const bundle::Bundle& bundle, const Record& record) {
  bundle::RecordHeader header{};
  if (record.size() < sizeof header) return false;
  std::memcpy(&header, record.data(), sizeof header);
  return header.action < bundle.actions.size() &&
         bundle.actions[header.action].kind == ActionKind::kErrorf;
}

/// "" where it passed.
std::string why_failed(const bundle::Bundle& bundle,
                       uint32_t result,
                       const std::vector<Record>& records,
                       std::optional<int> exit_code) {
  if (result != 0) return fmt::format("it returned {}", static_cast<int32_t>(result));
  const auto errors = std::ranges::count_if(
      records, [&](const Record& record) { return tells_error(bundle, record); });
  if (errors > 0) return fmt::format("it told {} error{}", errors, errors == 1 ? "" : "s");
  if (exit_code.value_or(0) != 0) return fmt::format("it called exit({})", *exit_code);
  return {};
}

/// Prints what is there to print; the status of exit(), where there is one.
Result<std::optional<int>> show(const std::vector<Record>& records,
                                engine::Trace& trace,
                                output::Records& printer) {
  std::optional<int> code;
  for (const Record& record : records) {
    SPILE_TRY(auto one, printer.handle(record, trace));
    if (one) code = one;
  }
  return code;
}

/// exit() alone is looked at before anything is printed.
Result<std::optional<int>> exit_code_of(const std::vector<Record>& records,
                                        engine::Trace& trace,
                                        output::Records& printer) {
  std::vector<Record> exits;
  std::ranges::copy_if(records, std::back_inserter(exits),
                       [&](const Record& record) { return printer.is_exit(record); });
  return show(exits, trace, printer);
}

}  // namespace

Result<size_t> run_tests(const bundle::Bundle& bundle,
                         engine::Trace& trace,
                         output::Records& records,
                         output::Output& out) {
  size_t passed = 0, failed = 0;
  for (size_t i = 0; i < bundle.probes.size(); i++) {
    if (bundle.probes[i].kind != ProbeKind::kTest) continue;
    SPILE_TRY(const uint32_t result, trace.run_probe(i));
    SPILE_TRY(const auto sent, take_records(trace));
    SPILE_TRY(const auto code, exit_code_of(sent, trace, records));
    const std::string why = why_failed(bundle, result, sent, code);
    (why.empty() ? passed : failed)++;
    if (!why.empty()) SPILE_TRY_VOID(show(sent, trace, records));
    SPILE_TRY_VOID(out.test_result(bundle.probes[i].symbol, why));
  }
  SPILE_TRY_VOID(out.test_summary(passed, failed));
  return failed;
}

Result<void> run_benchmarks(const bundle::Bundle& bundle,
                            engine::Trace& trace,
                            output::Output& out) {
  std::vector<output::Benchmark> rows;
  for (size_t i = 0; i < bundle.probes.size(); i++) {
    if (bundle.probes[i].kind != ProbeKind::kBench) continue;
    SPILE_TRY(const double ns, trace.measure_probe(i));
    rows.push_back({bundle.probes[i].symbol, ns});
    // What it prints is of no use some thousand times, and must not fill the ring.
    SPILE_TRY_VOID(take_records(trace));
  }
  return out.benchmarks(rows);
}

Result<bool> run_signal_probes(const bundle::Bundle& bundle,
                               engine::Trace& trace,
                               std::string_view signal) {
  bool any = false;
  for (size_t i = 0; i < bundle.probes.size(); i++) {
    if (bundle.probes[i].kind != ProbeKind::kSelf || bundle.probes[i].symbol != signal) continue;
    SPILE_TRY_VOID(trace.run_probe(i));
    any = true;
  }
  return any;
}

}  // namespace spile::session
