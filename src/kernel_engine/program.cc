#include "kernel_engine/program.h"

#include <bpf/bpf.h>
#include <linux/bpf.h>

#include <cerrno>
#include <cstring>

#include "bpf/function_types.h"
#include "kernel_engine/multi_link.h"
#include "kernel_engine/perf_output.h"
#include "kernel_engine/session_program.h"

namespace spile::kernel_engine {

namespace {

struct KernelKind {
  enum bpf_prog_type type = BPF_PROG_TYPE_UNSPEC;
  int attach_type = 0;
};

KernelKind kernel_kind(LoadType type) {
  switch (type) {
    case LoadType::kKprobe: return {BPF_PROG_TYPE_KPROBE};
    case LoadType::kKprobeMulti: return {BPF_PROG_TYPE_KPROBE, kTraceKprobeMulti};
    case LoadType::kKprobeSession: return {BPF_PROG_TYPE_KPROBE, kTraceKprobeSession};
    case LoadType::kUprobeMulti: return {BPF_PROG_TYPE_KPROBE, kTraceUprobeMulti};
    case LoadType::kUprobeSession: return {BPF_PROG_TYPE_KPROBE, kTraceUprobeSession};
    case LoadType::kTracepoint: return {BPF_PROG_TYPE_TRACEPOINT};
    case LoadType::kPerfEvent: return {BPF_PROG_TYPE_PERF_EVENT};
    case LoadType::kTestRun: return {BPF_PROG_TYPE_RAW_TRACEPOINT};
    case LoadType::kRawTracepoint: return {BPF_PROG_TYPE_TRACING, BPF_TRACE_RAW_TP};
    case LoadType::kFentry: return {BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY};
    case LoadType::kFexit: return {BPF_PROG_TYPE_TRACING, BPF_TRACE_FEXIT};
    case LoadType::kIter: return {BPF_PROG_TYPE_TRACING, BPF_TRACE_ITER};
  }
  return {};
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

/// Under lockdown the helpers that read the kernel's memory are not there ("cannot use helper";
/// before 6.10 "unknown func").
bool may_not_read_kernel(std::string_view log) {
  for (std::string_view refusal :
       {"cannot use helper bpf_probe_read_kernel", "unknown func bpf_probe_read_kernel"}) {
    if (log.find(refusal) != std::string_view::npos) return true;
  }
  return false;
}

/// The end of a verifier log is where it says what is wrong.
std::string tail(const std::string& log, size_t lines) {
  size_t at = log.size();
  for (size_t i = 0; i <= lines && at != std::string::npos && at > 0; i++)
    at = log.rfind('\n', at - 1);
  return at == std::string::npos || at == 0 ? log : log.substr(at + 1);
}

}  // namespace

Result<Fd> load_program(const bundle::Program& program,
                        LoadType type,
                        const Maps& maps,
                        const TypeTarget* target) {
  std::vector<bpf_insn> code = with_descriptors(program.code, maps);
  const KernelKind kind = kernel_kind(type);
  LIBBPF_OPTS(bpf_prog_load_opts, options);
  options.expected_attach_type = static_cast<bpf_attach_type>(kind.attach_type);
  if (target != nullptr) {
    options.attach_btf_id = target->id;
    if (target->object) options.attach_btf_obj_fd = static_cast<uint32_t>(target->object.get());
  }
  bpf::FunctionTypes types;
  Fd btf;
  if (!program.functions.empty()) {
    types = bpf::function_types(program.functions);
    btf = Fd(bpf_btf_load(types.btf.data(), types.btf.size(), nullptr));
    if (!btf) return fail_errno(errno, "load the types of a program's functions");
    options.prog_btf_fd = static_cast<uint32_t>(btf.get());
    options.func_info = types.functions.data();
    options.func_info_cnt = static_cast<uint32_t>(types.functions.size());
    options.func_info_rec_size = sizeof(bpf::FunctionInfo);
  }
  int fd =
      bpf_prog_load(kind.type, program.name.c_str(), "GPL", code.data(), code.size(), &options);
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
  int again =
      bpf_prog_load(kind.type, program.name.c_str(), "GPL", code.data(), code.size(), &options);
  if (again >= 0) return Fd(again);
  log.resize(strlen(log.c_str()));
  if (may_not_read_kernel(log))
    return fail(
        ErrorCode::kDenied,
        "this kernel is locked down and lets no program read its memory, which str(), * and "
        "-> of its addresses do (/sys/kernel/security/lockdown: confidentiality); counting "
        "works. It ends with Secure Boot off, or lockdown=none or integrity");
  if (log.empty()) return fail_errno(-again, "load the program {}", program.name);
  return fail(ErrorCode::kInternal, "the kernel's verifier refused the program {} ({}):\n{}",
              program.name, strerror(-again), tail(log, 25));
}

Result<uint32_t> run_once(int program_fd, std::string_view what) {
  LIBBPF_OPTS(bpf_test_run_opts, options);
  int err = bpf_prog_test_run_opts(program_fd, &options);
  if (err < 0) return fail_errno(-err, "run the {} program", what);
  return options.retval;
}

Result<RunCounts> run_counts(int program_fd) {
  bpf_prog_info info = {};
  uint32_t length = sizeof info;
  int err = bpf_obj_get_info_by_fd(program_fd, &info, &length);
  if (err < 0) return fail_errno(-err, "read a program's statistics");
  return RunCounts{info.run_cnt, info.run_time_ns, info.recursion_misses};
}

namespace {

LoadType as_typed(bundle::ProbeKind kind, LoadType otherwise) {
  switch (kind) {
    case bundle::ProbeKind::kRawTracepoint: return LoadType::kRawTracepoint;
    case bundle::ProbeKind::kFentry: return LoadType::kFentry;
    case bundle::ProbeKind::kFexit: return LoadType::kFexit;
    case bundle::ProbeKind::kIter: return LoadType::kIter;
    default: return otherwise;
  }
}

bundle::Program trivial_program() {
  return {
      .name = "spile_feature",
      .code = {{bpf::kClassAlu64 | bpf::kMov, 0, 0, 0}, {bpf::kClassJmp | bpf::kExit, 0, 0, 0}}};
}

bool may_load_others(const Maps& maps) {
  return load_program(trivial_program(), LoadType::kKprobe, maps).has_value();
}

}  // namespace

Result<void> takes_function_programs(KernelTypes& types) {
  TypeTarget target;
  SPILE_TRY(target.id, types.function_id("vfs_read"));
  SPILE_TRY(Maps none, Maps::create({}));
  auto loaded = load_program(trivial_program(), LoadType::kFentry, none, &target);
  if (loaded) return {};
  return fail(ErrorCode::kUnsupported,
              "this kernel takes no programs there (a security policy, or no "
              "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS)");
}

/// As the Bundle has it, with what this kernel and the switches of probes make of it.
Result<bundle::Program> Programs::prepared(int index, LoadType type) const {
  bundle::Program program = bundle_.programs.at(static_cast<size_t>(index));
  if (maps_.uses_perf_buffer() && sends_records(program.code)) {
    if (!program.functions.empty())
      return fail(
          ErrorCode::kUnsupported,
          "a clause with a loop sends no records through perf buffers: print outside of it, "
          "or leave out --records perf");
    SPILE_TRY(program.code, with_perf_output(program.code, bundle_.ring_map, maps_.scratch_map(),
                                             maps_.scratch_claim()));
  }
  if (type == LoadType::kTestRun) return program;
  const size_t bare = program.code.size();
  program.code = gate_.gated(program.code, index);
  for (uint32_t& start : program.functions)
    start += static_cast<uint32_t>(program.code.size() - bare);
  return program;
}

Result<int> Programs::shared(int index, LoadType type) {
  Fd& fd = loaded_[{index, type, -1}];
  if (!fd) {
    SPILE_TRY(const bundle::Program program, prepared(index, type));
    SPILE_TRY(fd, load_program(program, type, maps_));
  }
  return fd.get();
}

Result<int> Programs::of_probe(size_t index, LoadType type) {
  const bundle::Probe& probe = bundle_.probes.at(index);
  const auto& program = bundle_.programs.at(static_cast<size_t>(probe.program));
  bool is_typed = bundle::is_typed(probe.kind);
  if (!is_typed && !calls(program.code, bpf::Helper::kGetAttachCookie))
    return shared(probe.program, type);
  Fd& fd = loaded_[{probe.program, as_typed(probe.kind, type), static_cast<int64_t>(index)}];
  if (fd) return fd.get();
  SPILE_TRY(bundle::Program own, prepared(probe.program, as_typed(probe.kind, type)));
  fix_cookie(own.code, bundle_.cookie_of(index));
  TypeTarget target;
  if (is_typed) {
    SPILE_TRY(target, types_->target(probe));
  }
  auto loaded = load_program(own, as_typed(probe.kind, type), maps_, is_typed ? &target : nullptr);
  if (!loaded && is_typed && loaded.error().code == ErrorCode::kDenied && may_load_others(maps_))
    return fail(ErrorCode::kUnsupported,
                "this kernel does not permit such programs, although it takes others: a security "
                "policy, or no tracing of functions");
  if (!loaded) return forward(loaded);
  fd = std::move(*loaded);
  return fd.get();
}

Result<int> Programs::session(const Pair& pair, LoadType type) {
  int64_t probe = pair.entry_probe ? static_cast<int64_t>(*pair.entry_probe) : -1;
  Fd& fd = loaded_[{pair.entry, type, probe}];
  if (fd) return fd.get();
  SPILE_TRY(uint32_t is_return, types_->function_id("bpf_session_is_return"));
  SPILE_TRY(bundle::Program entry, prepared(pair.entry, type));
  SPILE_TRY(bundle::Program at_return, prepared(pair.at_return, type));
  if (!entry.functions.empty() || !at_return.functions.empty())
    return fail(ErrorCode::kUnsupported,
                "a clause with a loop of more than 32 rounds shares no program with another");
  if (entry.code.size() >= INT16_MAX)  // further than a jump goes
    return fail(ErrorCode::kUnsupported,
                "a clause of {} instructions shares no program with another", entry.code.size());
  if (pair.entry_probe) fix_cookie(entry.code, bundle_.cookie_of(*pair.entry_probe));
  if (pair.return_probe) fix_cookie(at_return.code, bundle_.cookie_of(*pair.return_probe));
  entry.code = join_session(entry.code, at_return.code, static_cast<int32_t>(is_return));
  SPILE_TRY(fd, load_program(entry, type, maps_));
  return fd.get();
}

Result<RunCounts> Programs::counts() const {
  RunCounts sum;
  for (const auto& [key, fd] : loaded_) {
    if (!fd || key.type == LoadType::kTestRun) continue;
    SPILE_TRY(RunCounts one, run_counts(fd.get()));
    sum.runs += one.runs;
    sum.missed += one.missed;
    sum.time_ns += one.time_ns;
  }
  return sum;
}

}  // namespace spile::kernel_engine
