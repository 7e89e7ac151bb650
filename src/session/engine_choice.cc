#include "session/engine_choice.h"

namespace spile::session {

using bundle::ProbeKind;

Result<ChosenEngine> choose_engine(const bundle::Bundle& bundle, const TargetRequest& target) {
  bool kernel_only = false, user = false;
  std::string kernel_probe;
  for (const bundle::Probe& probe : bundle.probes) {
    switch (probe.kind) {
      case ProbeKind::kBegin:
      case ProbeKind::kEnd:
      case ProbeKind::kInterval:
      case ProbeKind::kSelf:
      case ProbeKind::kTest: break;
      case ProbeKind::kUprobe:
      case ProbeKind::kUretprobe:
      case ProbeKind::kUsdt: user = true; break;
      default: kernel_only = true; kernel_probe = probe.name;
    }
  }
  if (!bundle.needs_kernel.empty()) kernel_only = true;
  if (kernel_probe.empty()) kernel_probe = bundle.needs_kernel;
  bool has_target = !target.pids.empty() || !target.command.empty();
  if (target.engine != EngineChoice::kKernel && target.attach != "auto" && !kernel_only) {
    if (target.engine == EngineChoice::kUser)
      return fail(ErrorCode::kInvalid, "--attach is of the kernel engine; leave out --engine user");
    return ChosenEngine{EngineChoice::kKernel, ""};
  }
  if (target.engine == EngineChoice::kUser) {
    if (kernel_only)
      return fail(ErrorCode::kInvalid, "{}: only the kernel has this; leave out --engine user",
                  kernel_probe);
    if (user && !has_target)
      return fail(ErrorCode::kInvalid, "the user engine needs a process: -p PID or -c COMMAND");
    return ChosenEngine{EngineChoice::kUser, ""};
  }
  if (target.engine == EngineChoice::kKernel) return ChosenEngine{EngineChoice::kKernel, ""};
  if (kernel_only) {
    std::string note;
    if (user && !bundle.needs_kernel.empty()) {
      note = bundle.needs_kernel + " is the kernel engine's: all of this script runs there";
    } else if (user) {
      note =
          "this script has probes of the kernel and of programs: all of it runs in the kernel "
          "engine";
    }
    return ChosenEngine{EngineChoice::kKernel, std::move(note)};
  }
  if (user && !has_target) return ChosenEngine{EngineChoice::kKernel, ""};
  return ChosenEngine{EngineChoice::kUser, ""};
}

}  // namespace spile::session
