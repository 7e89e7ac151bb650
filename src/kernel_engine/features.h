// What the running kernel offers, found by trying: version numbers lie where features are
// backported or left out.
#pragma once

#include <optional>

#include "base/error.h"
#include "bpf/insn.h"

namespace spile::kernel_engine {

/// Each question is asked of the kernel once. One thread uses it.
class Features {
 public:
  bool kprobe_session();
  bool kprobe_multi();
  bool uprobe_multi();
  /// uprobe.multi whose pid means a process; that of 6.6 to 6.9 meant one thread.
  bool uprobe_multi_with_pid();
  /// An entry and a return by one program (6.13).
  bool uprobe_session();
  bool perf_link();    ///< BPF_LINK_CREATE on perf events, with a cookie (5.15)
  bool ring_buffer();  ///< BPF_MAP_TYPE_RINGBUF (5.8)
  bool exchange();     ///< programs may exchange a word of memory in one instruction (5.12)
  /// Programs may have their loops made by the kernel: bpf_loop (5.17), bpf_for_each_map_elem.
  bool loops();
  /// False: the kernel says that it does not know it. Who may not ask is told of that elsewhere.
  static bool has_helper(bpf::Helper helper);
  bool kernel_types();   ///< /sys/kernel/btf/vmlinux
  bool kprobe_events();  ///< the PMU "kprobe"
  /// Programs can be loaded. Errors: denied.
  Result<void> programs();

 private:
  bool ask(std::optional<bool>& known, bool (*question)());
  std::optional<bool> session_, kprobe_multi_, uprobe_multi_, uprobe_pid_, uprobe_session_,
      perf_link_, ring_, exchange_, loops_, btf_, kprobes_;
};

}  // namespace spile::kernel_engine
