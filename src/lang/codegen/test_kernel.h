// Loads a Bundle's programs into the running kernel with bpf(2), to ask its verifier. For tests.
#pragma once

#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "bpf/function_types.h"
#include "bundle/bundle.h"

namespace spile::lang {

class KernelBundle {
 public:
  /// Errors: denied       this process may not load programs
  ///         invalid      the verifier refused one; the message is its log
  static Result<KernelBundle> load(const bundle::Bundle& bundle) {
    KernelBundle loaded;
    for (const bundle::MapSpec& spec : bundle.maps) {
      SPILE_TRY(Fd fd, create_map(spec));
      loaded.maps_.push_back(std::move(fd));
    }
    for (const bundle::Program& program : bundle.programs) {
      SPILE_TRY(Fd fd, loaded.load_program(program));
      loaded.programs_.push_back(std::move(fd));
    }
    return loaded;
  }

  /// Runs a program that takes no context.
  Result<void> run(size_t program) {
    bpf_attr attr{};
    attr.test.prog_fd = static_cast<uint32_t>(programs_.at(program).get());
    if (sys_bpf(BPF_PROG_TEST_RUN, attr) < 0) return fail_errno(errno, "BPF_PROG_TEST_RUN");
    return {};
  }

  Result<std::vector<uint8_t>> lookup(int map,
                                      const std::vector<uint8_t>& key,
                                      size_t value_bytes) {
    std::vector<uint8_t> value(value_bytes);
    bpf_attr attr{};
    attr.map_fd = static_cast<uint32_t>(maps_.at(static_cast<size_t>(map)).get());
    attr.key = reinterpret_cast<uint64_t>(key.data());
    attr.value = reinterpret_cast<uint64_t>(value.data());
    if (sys_bpf(BPF_MAP_LOOKUP_ELEM, attr) < 0) return fail_errno(errno, "BPF_MAP_LOOKUP_ELEM");
    return value;
  }

 private:
  static long sys_bpf(int command, bpf_attr& attr) {
    return syscall(SYS_bpf, command, &attr, sizeof(attr));
  }

  static Result<Fd> create_map(const bundle::MapSpec& spec) {
    static constexpr uint32_t kTypes[] = {
        BPF_MAP_TYPE_HASH,         BPF_MAP_TYPE_ARRAY,    BPF_MAP_TYPE_PERCPU_HASH,
        BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_RINGBUF,  BPF_MAP_TYPE_STACK_TRACE,
        BPF_MAP_TYPE_HASH,         BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_LRU_PERCPU_HASH};
    bpf_attr attr{};
    attr.map_type = kTypes[static_cast<int>(spec.kind)];
    attr.key_size = spec.key_size;
    attr.value_size = spec.value_size;
    attr.max_entries = spec.max_entries;
    bool is_hash = spec.kind == bundle::MapKind::kHash ||
                   spec.kind == bundle::MapKind::kPerCpuHash ||
                   spec.kind == bundle::MapKind::kCalls;
    if (is_hash) attr.map_flags = BPF_F_NO_PREALLOC;  // quick to make
    Fd fd(static_cast<int>(sys_bpf(BPF_MAP_CREATE, attr)));
    if (!fd) return fail_errno(errno, "create map '{}'", spec.name);
    return fd;
  }

  static Result<Fd> load_types(const bpf::FunctionTypes& types) {
    bpf_attr attr{};
    attr.btf = reinterpret_cast<uint64_t>(types.btf.data());
    attr.btf_size = static_cast<uint32_t>(types.btf.size());
    Fd fd(static_cast<int>(sys_bpf(BPF_BTF_LOAD, attr)));
    if (!fd) return fail_errno(errno, "BPF_BTF_LOAD");
    return fd;
  }

  Result<Fd> load_program(const bundle::Program& program) {
    bpf::Program code = program.code;
    for (bpf::Insn& insn : code) {
      bool is_map = insn.code == (bpf::kClassLd | bpf::kSizeDw | bpf::kModeImm) &&
                    insn.src() == bpf::kPseudoMapIdx;
      if (!is_map) continue;
      insn.imm = maps_.at(static_cast<size_t>(insn.imm)).get();
      insn.regs = static_cast<uint8_t>(insn.dst() | bpf::kPseudoMapFd << 4);
    }
    bpf_attr attr{};
    attr.prog_type = program.context == bundle::ContextKind::kRegs ? BPF_PROG_TYPE_KPROBE
                     : program.context == bundle::ContextKind::kTracepoint
                         ? BPF_PROG_TYPE_TRACEPOINT
                         : BPF_PROG_TYPE_RAW_TRACEPOINT;
    attr.insns = reinterpret_cast<uint64_t>(code.data());
    attr.insn_cnt = static_cast<uint32_t>(code.size());
    attr.license = reinterpret_cast<uint64_t>("GPL");
    bpf::FunctionTypes types;
    Fd btf;
    if (!program.functions.empty()) {
      types = bpf::function_types(program.functions);
      SPILE_TRY(btf, load_types(types));
      attr.prog_btf_fd = static_cast<uint32_t>(btf.get());
      attr.func_info = reinterpret_cast<uint64_t>(types.functions.data());
      attr.func_info_cnt = static_cast<uint32_t>(types.functions.size());
      attr.func_info_rec_size = sizeof(bpf::FunctionInfo);
    }
    std::strncpy(attr.prog_name, program.name.c_str(), sizeof(attr.prog_name) - 1);
    Fd fd(static_cast<int>(sys_bpf(BPF_PROG_LOAD, attr)));
    if (fd) return fd;
    int first_error = errno;
    std::vector<char> log(1 << 20);
    attr.log_level = 1;
    attr.log_size = static_cast<uint32_t>(log.size());
    attr.log_buf = reinterpret_cast<uint64_t>(log.data());
    Fd again(static_cast<int>(sys_bpf(BPF_PROG_LOAD, attr)));
    std::string text(log.data());
    if (text.size() > 6000) text = "..." + text.substr(text.size() - 6000);
    return fail(first_error == EPERM ? ErrorCode::kDenied : ErrorCode::kInvalid, "{}: {}\n{}",
                program.name, std::strerror(first_error), text);
  }

  std::vector<Fd> maps_, programs_;
};

/// Why no program can be loaded here; "" when they can.
inline std::string why_no_kernel() {
  static const std::string reason = [] {
    bundle::Bundle empty;
    empty.programs.push_back({.name = "probe", .code = {{0xb7, 0, 0, 0}, {0x95, 0, 0, 0}}});
    auto loaded = KernelBundle::load(empty);
    return loaded ? std::string()
                  : "bpf(2) refuses to load programs here: " + loaded.error().message;
  }();
  return reason;
}

}  // namespace spile::lang
