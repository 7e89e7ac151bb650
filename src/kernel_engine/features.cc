#include "kernel_engine/features.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <span>

#include "base/fd.h"
#include "bpf/insn.h"
#include "kernel_engine/multi_link.h"

namespace spile::kernel_engine {

namespace {

Fd load_kprobe(std::span<const bpf_insn> code, int attach_type) {
  LIBBPF_OPTS(bpf_prog_load_opts, options);
  options.expected_attach_type = static_cast<bpf_attach_type>(attach_type);
  int fd = bpf_prog_load(BPF_PROG_TYPE_KPROBE, "spile_feature", "GPL", code.data(), code.size(),
                         &options);
  return fd < 0 ? Fd() : Fd(fd);
}

/// `return 0`, loaded as a kprobe program for this way of attaching.
Fd trivial_program(int attach_type) {
  bpf_insn code[2] = {};
  code[0].code = BPF_ALU64 | BPF_MOV | BPF_K;
  code[1].code = BPF_JMP | BPF_EXIT;
  return load_kprobe(code, attach_type);
}

/// `*(u64*)(r10-8) = 0; r0 = 0; r0 = exchange(*(u64*)(r10-8), r0); return r0`
bool takes_exchange() {
  bpf_insn code[4] = {};
  code[0] = {.code = BPF_ST | BPF_MEM | BPF_DW, .dst_reg = 10, .src_reg = 0, .off = -8, .imm = 0};
  code[1].code = BPF_ALU64 | BPF_MOV | BPF_K;
  code[2] = {.code = BPF_STX | BPF_ATOMIC | BPF_DW,
             .dst_reg = 10,
             .src_reg = 0,
             .off = -8,
             .imm = bpf::kXchg};
  code[3].code = BPF_JMP | BPF_EXIT;
  return static_cast<bool>(load_kprobe(code, 0));
}

/// A kernel that has these links looks for the function, and does not find it.
bool looks_for_functions(int attach_type) {
  Fd program = trivial_program(attach_type);
  if (!program) return false;
  auto link =
      link_kprobes(program.get(), attach_type, {"spile_no_such_function"}, {0}, Moment::kEntry);
  return !link && link.error().code == ErrorCode::kNotFound;
}

/// A kernel that has these links refuses "/", which is no file, or before that a pid of -1.
int errno_of_uprobe_link(int attach_type, pid_t pid) {
  Fd program = trivial_program(attach_type);
  if (!program) return 0;
  const UprobeSite site = {FileOffset(0), FileOffset(0), 0, 0};
  errno = 0;
  auto link = link_uprobes(program.get(), attach_type, "/", {&site, 1}, Moment::kEntry, pid);
  return link ? 0 : errno;
}

bool asks_perf_event() {
  Fd program = trivial_program(0);
  if (!program) return false;
  LIBBPF_OPTS(bpf_link_create_opts, options);
  return bpf_link_create(program.get(), -1, BPF_PERF_EVENT, &options) == -EBADF;
}

bool makes_rings() {
  LIBBPF_OPTS(bpf_map_create_opts, options);
  return static_cast<bool>(
      Fd(bpf_map_create(BPF_MAP_TYPE_RINGBUF, "spile_feature", 0, 0, 4096, &options)));
}

}  // namespace

bool Features::has_helper(bpf::Helper helper) {
  return libbpf_probe_bpf_helper(BPF_PROG_TYPE_KPROBE, static_cast<bpf_func_id>(helper), nullptr) !=
         0;
}

bool Features::ask(std::optional<bool>& known, bool (*question)()) {
  if (!known) known = question();
  return *known;
}

bool Features::kprobe_session() {
  return ask(session_, [] { return looks_for_functions(kTraceKprobeSession); });
}
bool Features::kprobe_multi() {
  return ask(kprobe_multi_, [] { return looks_for_functions(kTraceKprobeMulti); });
}
bool Features::uprobe_multi() {
  return ask(uprobe_multi_, [] { return errno_of_uprobe_link(kTraceUprobeMulti, 0) == EBADF; });
}
bool Features::uprobe_multi_with_pid() {
  return uprobe_multi() &&
         ask(uprobe_pid_, [] { return errno_of_uprobe_link(kTraceUprobeMulti, -1) == EINVAL; });
}
bool Features::uprobe_session() {
  return ask(uprobe_session_, [] { return errno_of_uprobe_link(kTraceUprobeSession, 0) == EBADF; });
}
bool Features::perf_link() {
  return ask(perf_link_, asks_perf_event);
}
bool Features::ring_buffer() {
  return ask(ring_, makes_rings);
}
bool Features::exchange() {
  return ask(exchange_, takes_exchange);
}
bool Features::loops() {
  return ask(loops_, [] {
    return has_helper(bpf::Helper::kLoop) && has_helper(bpf::Helper::kForEachMapElem);
  });
}
bool Features::kernel_types() {
  return ask(btf_, [] { return access("/sys/kernel/btf/vmlinux", R_OK) == 0; });
}
bool Features::kprobe_events() {
  return ask(kprobes_,
             [] { return access("/sys/bus/event_source/devices/kprobe/type", R_OK) == 0; });
}

Result<void> Features::programs() {
  if (trivial_program(0)) return {};
  return fail(ErrorCode::kDenied,
              "bpf(2) refuses to load programs: {}; needs root, or CAP_BPF and CAP_PERFMON",
              std::strerror(errno));
}

}  // namespace spile::kernel_engine
