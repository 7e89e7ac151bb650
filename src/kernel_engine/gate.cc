#include "kernel_engine/gate.h"

#include <bpf/bpf.h>
#include <linux/bpf.h>

#include <algorithm>
#include <map>
#include <set>

namespace spile::kernel_engine {

using bpf::Insn;
using bpf::Reg;
using bundle::ProbeKind;

namespace {

Insn make(uint8_t code, Reg dst, uint8_t src, int16_t off, int32_t imm) {
  return {code, static_cast<uint8_t>(static_cast<uint8_t>(dst) | src << 4), off, imm};
}

bool has_gate(const bundle::Probe& probe) {
  return !bundle::is_called(probe.kind) && probe.kind != ProbeKind::kIter && probe.entry_of < 0;
}

}  // namespace

Result<Gate> Gate::create(const bundle::Bundle& bundle, bool is_on) {
  Gate gate;
  const size_t count = std::max<size_t>(1, bundle.programs.size());
  gate.words_.assign(count, is_on ? 1 : 0);
  gate.gated_.assign(count, false);
  for (const bundle::Probe& probe : bundle.probes) {
    if (probe.program >= 0 && has_gate(probe))
      gate.gated_[static_cast<size_t>(probe.program)] = true;
  }
  int fd =
      bpf_map_create(BPF_MAP_TYPE_ARRAY, "gates", 4, static_cast<uint32_t>(8 * count), 1, nullptr);
  if (fd == -EPERM)
    return fail(ErrorCode::kDenied,
                "create the map of switches: Operation not permitted; the kernel engine needs "
                "root, or CAP_BPF and CAP_PERFMON");
  if (fd < 0) return fail_errno(-fd, "create the map of switches");
  gate.map_ = Fd(fd);
  SPILE_TRY_VOID(gate.write());
  return gate;
}

Result<void> Gate::write() {
  const uint32_t key = 0;
  int err = bpf_map_update_elem(map_.get(), &key, words_.data(), BPF_ANY);
  if (err < 0) return fail_errno(-err, "switch probes");
  return {};
}

bpf::Program Gate::gated(const bpf::Program& code, int program) const {
  if (!is_gated(program)) return code;
  bpf::Program out = {make(bpf::kClassLd | bpf::kModeImm | bpf::kSizeDw, Reg::r2,
                           bpf::kPseudoMapValue, 0, map_.get()),
                      make(0, Reg::r0, 0, 0, 8 * program),
                      make(bpf::kClassLdx | bpf::kModeMem | bpf::kSizeDw, Reg::r2,
                           static_cast<uint8_t>(Reg::r2), 0, 0),
                      make(bpf::kClassJmp | bpf::kJne, Reg::r2, 0, 2, 0),
                      make(bpf::kClassAlu64 | bpf::kMov, Reg::r0, 0, 0, 0),
                      make(bpf::kClassJmp | bpf::kExit, Reg::r0, 0, 0, 0)};
  out.insert(out.end(), code.begin(), code.end());
  return out;
}

Result<void> Gate::switch_probes(const bundle::Bundle& bundle,
                                 std::span<const int> probes,
                                 bool on) {
  const std::set<int> wanted(probes.begin(), probes.end());
  std::vector<uint64_t> words = words_;
  std::map<int, size_t> switched;  // by program, one of its probes
  for (int index : wanted) {
    const bundle::Probe& probe = bundle.probes.at(static_cast<size_t>(index));
    if (probe.program < 0 || !has_gate(probe)) continue;
    switched.emplace(probe.program, index);
    words[static_cast<size_t>(probe.program)] = on ? 1 : 0;
  }
  for (size_t i = 0; i < bundle.probes.size(); i++) {
    const auto with = switched.find(bundle.probes[i].program);
    if (with != switched.end() && !wanted.contains(static_cast<int>(i)))
      return fail(ErrorCode::kUnsupported,
                  "{} and {} run one program: the kernel engine switches them together",
                  bundle.probes[with->second].name, bundle.probes[i].name);
  }
  words_ = std::move(words);
  return write();
}

}  // namespace spile::kernel_engine
