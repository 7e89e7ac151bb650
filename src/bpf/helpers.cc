#include "bpf/helpers.h"

#include <algorithm>

namespace spile::bpf {

namespace {

using enum ArgType;

// Source: bpf_*_proto in the kernel's kernel/bpf/helpers.c, kernel/bpf/ringbuf.c and
// kernel/trace/bpf_trace.c.
constexpr HelperSignature kSignatures[] = {
    {Helper::kMapLookupElem, "map_lookup_elem", {kMap, kMapKey}, ReturnType::kMapValueOrNull},
    {Helper::kMapUpdateElem,
     "map_update_elem",
     {kMap, kMapKey, kMapValue, kScalar},
     ReturnType::kScalar},
    {Helper::kMapDeleteElem, "map_delete_elem", {kMap, kMapKey}, ReturnType::kScalar},
    {Helper::kKtimeGetNs, "ktime_get_ns", {}, ReturnType::kScalar},
    {Helper::kGetPrandomU32, "get_prandom_u32", {}, ReturnType::kScalar},
    {Helper::kGetSmpProcessorId, "get_smp_processor_id", {}, ReturnType::kScalar},
    {Helper::kGetCurrentPidTgid, "get_current_pid_tgid", {}, ReturnType::kScalar},
    {Helper::kGetCurrentUidGid, "get_current_uid_gid", {}, ReturnType::kScalar},
    {Helper::kGetCurrentComm, "get_current_comm", {kWriteMemory, kSize}, ReturnType::kScalar},
    {Helper::kGetStackid, "get_stackid", {kContext, kStacks, kScalar}, ReturnType::kScalar},
    {Helper::kGetCurrentTask, "get_current_task", {}, ReturnType::kScalar},
    {Helper::kGetNumaNodeId, "get_numa_node_id", {}, ReturnType::kScalar},
    {Helper::kGetCurrentCgroupId, "get_current_cgroup_id", {}, ReturnType::kScalar},
    {Helper::kSendSignal, "send_signal", {kScalar}, ReturnType::kScalar},
    {kSendSignalThread, "send_signal_thread", {kScalar}, ReturnType::kScalar},
    {Helper::kJiffies64, "jiffies64", {}, ReturnType::kScalar},
    {Helper::kOverrideReturn, "override_return", {kContext, kScalar}, ReturnType::kScalar},
    {Helper::kProbeReadUser,
     "probe_read_user",
     {kWriteMemory, kSizeOrZero, kAddress},
     ReturnType::kScalar},
    {Helper::kProbeReadKernel,
     "probe_read_kernel",
     {kWriteMemory, kSizeOrZero, kAddress},
     ReturnType::kScalar},
    {Helper::kProbeReadUserStr,
     "probe_read_user_str",
     {kWriteMemory, kSizeOrZero, kAddress},
     ReturnType::kErrorOrSize},
    {Helper::kProbeReadKernelStr,
     "probe_read_kernel_str",
     {kWriteMemory, kSizeOrZero, kAddress},
     ReturnType::kErrorOrSize},
    {Helper::kKtimeGetBootNs, "ktime_get_boot_ns", {}, ReturnType::kScalar},
    {Helper::kRingbufOutput,
     "ringbuf_output",
     {kRing, kReadMemory, kSizeOrZero, kScalar},
     ReturnType::kScalar},
    {Helper::kRingbufReserve,
     "ringbuf_reserve",
     {kRing, kRecordSize, kZero},
     ReturnType::kRecordOrNull},
    {Helper::kRingbufSubmit, "ringbuf_submit", {kRecord, kScalar}, ReturnType::kNothing},
    {Helper::kRingbufDiscard, "ringbuf_discard", {kRecord, kScalar}, ReturnType::kNothing},
    {Helper::kGetAttachCookie, "get_attach_cookie", {kContext}, ReturnType::kScalar},
    {Helper::kMapLookupPercpuElem,
     "map_lookup_percpu_elem",
     {kMap, kMapKey, kScalar},
     ReturnType::kMapValueOrNull},
    {Helper::kMapNextKey, "map_next_key", {kMap, kScalar, kMapKeyOut}, ReturnType::kScalar},
};

}  // namespace

std::span<const HelperSignature> helper_signatures() {
  return kSignatures;
}

const HelperSignature* find_helper(int32_t id) {
  const auto* found =
      std::ranges::find(kSignatures, static_cast<Helper>(id), &HelperSignature::helper);
  return found == std::end(kSignatures) ? nullptr : found;
}

}  // namespace spile::bpf
