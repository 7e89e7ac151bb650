#include "kernel_engine/program.h"

#include <bpf/bpf.h>
#include <linux/bpf.h>

#include <cerrno>
#include <cstring>

namespace spile::kernel_engine {

namespace {

/// BPF_TRACE_UPROBE_MULTI: newer than the headers of Debian 12.
constexpr int kTraceUprobeMulti = 48;

enum bpf_prog_type kernel_type(LoadType type) {
  switch (type) {
    case LoadType::kKprobe:
    case LoadType::kUprobeMulti: return BPF_PROG_TYPE_KPROBE;
    case LoadType::kTracepoint: return BPF_PROG_TYPE_TRACEPOINT;
    case LoadType::kPerfEvent: return BPF_PROG_TYPE_PERF_EVENT;
    case LoadType::kTestRun: return BPF_PROG_TYPE_RAW_TRACEPOINT;
  }
  return BPF_PROG_TYPE_UNSPEC;
}

/// The kernel's struct bpf_insn has our layout; only map loads change.
std::vector<bpf_insn> with_descriptors(const bpf::Program& code, const Maps& maps) {
  std::vector<bpf_insn> out(code.size());
  static_assert(sizeof(bpf_insn) == sizeof(bpf::Insn));
  std::memcpy(out.data(), code.data(), code.size() * sizeof(bpf_insn));
  for (size_t i = 0; i < out.size(); i++) {
    bool lddw = out[i].code == (BPF_LD | BPF_DW | BPF_IMM);
    if (lddw && out[i].src_reg == bpf::kPseudoMapIdx) {
      out[i].src_reg = BPF_PSEUDO_MAP_FD;
      out[i].imm = maps.fd(out[i].imm);
    }
    if (lddw) i++;
  }
  return out;
}

/// The end of a verifier log is where it says what is wrong.
std::string tail(const std::string& log, size_t lines) {
  size_t at = log.size();
  for (size_t i = 0; i <= lines && at != std::string::npos && at > 0; i++)
    at = log.rfind('\n', at - 1);
  return at == std::string::npos || at == 0 ? log : log.substr(at + 1);
}

}  // namespace

Result<Fd> load_program(const bundle::Program& program, LoadType type, const Maps& maps) {
  std::vector<bpf_insn> code = with_descriptors(program.code, maps);
  LIBBPF_OPTS(bpf_prog_load_opts, options);
  if (type == LoadType::kUprobeMulti)
    options.expected_attach_type = static_cast<bpf_attach_type>(kTraceUprobeMulti);
  int fd = bpf_prog_load(kernel_type(type), program.name.c_str(), "GPL", code.data(), code.size(),
                         &options);
  if (fd >= 0) return Fd(fd);
  if (fd == -EPERM) {
    return fail(ErrorCode::kDenied,
                "load a program: {}; the kernel engine needs root, or CAP_BPF and CAP_PERFMON",
                strerror(-fd));
  }
  // A second time, to learn why: the log costs too much to ask for at once.
  std::string log(1 << 20, '\0');
  options.log_buf = log.data();
  options.log_size = static_cast<uint32_t>(log.size());
  options.log_level = 1;
  int again = bpf_prog_load(kernel_type(type), program.name.c_str(), "GPL", code.data(),
                            code.size(), &options);
  if (again >= 0) return Fd(again);
  log.resize(strlen(log.c_str()));
  if (log.empty()) return fail_errno(-again, "load the program {}", program.name);
  return fail(ErrorCode::kInternal, "the kernel's verifier refused the program {} ({}):\n{}",
              program.name, strerror(-again), tail(log, 25));
}

Result<void> run_once(int program_fd, std::string_view what) {
  LIBBPF_OPTS(bpf_test_run_opts, options);
  int err = bpf_prog_test_run_opts(program_fd, &options);
  if (err < 0) return fail_errno(-err, "run the {} program", what);
  return {};
}

Result<RunCounts> run_counts(int program_fd) {
  bpf_prog_info info = {};
  uint32_t length = sizeof info;
  int err = bpf_obj_get_info_by_fd(program_fd, &info, &length);
  if (err < 0) return fail_errno(-err, "read a program's statistics");
  return RunCounts{info.run_cnt, info.run_time_ns, info.recursion_misses};
}

}  // namespace spile::kernel_engine
