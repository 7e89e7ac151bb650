#include "api/hooks.h"

#include "api/readers.h"

namespace spile::api {
namespace {

constexpr uint64_t kMaxStackBytes = 8 << 20;

/// At a `ret` a handler sees what is right behind it.
class BehindReturn {
 public:
  explicit BehindReturn(spile_regs* regs) : regs_(regs), ip_(regs->ip) {
    regs->ip = *reinterpret_cast<const unsigned long*>(regs->sp);
    regs->sp += 8;
  }
  ~BehindReturn() {
    regs_->sp -= 8;
    regs_->ip = ip_;
  }

 private:
  spile_regs* regs_;
  unsigned long ip_;
};

}  // namespace

int run_kprobe(Hook* hook, Site*, spile_regs* regs) {
  auto* p = static_cast<spile_kprobe*>(hook->owner);
  return p->pre_handler == nullptr ? 0 : p->pre_handler(p, regs);
}

void run_kprobe_behind(Hook* hook, Site*, spile_regs* regs) {
  auto* p = static_cast<spile_kprobe*>(hook->owner);
  p->post_handler(p, regs, 0);
}

Call* Calls::at(size_t bucket, size_t way) const {
  return reinterpret_cast<Call*>(memory_ + (bucket * ways_ + way) * stride_);
}

__attribute__((always_inline)) inline Call* Calls::begin_own(uint64_t slot) {
  const size_t thread = thread_number();
  if (own_memory_ == nullptr || thread == kNoThread) return nullptr;
  Own* own = own_of(thread);
  const size_t used = own->used.load(std::memory_order_relaxed);
  Call* free = nullptr;
  for (size_t i = 0; i < used; ++i) {
    Call* call = own_call(own, i);
    const uint64_t taken = call->slot.load(std::memory_order_relaxed);
    if (taken == slot) return call;
    if (taken == 0 && free == nullptr) free = call;
  }
  if (free == nullptr) {
    if (used == kOwnWays) return nullptr;
    free = own_call(own, used);
    own->used.store(used + 1, std::memory_order_release);
  }
  free->slot.store(slot, std::memory_order_relaxed);
  return free;
}

__attribute__((noinline)) Call* Calls::begin_shared(uint64_t slot) {
  const size_t bucket = bucket_of(slot);
  for (size_t i = 0; i < ways_; ++i) {
    if (at(bucket, i)->slot.load(std::memory_order_relaxed) == slot) return at(bucket, i);
  }
  for (size_t i = 0; i < ways_; ++i) {
    uint64_t free = 0;
    if (at(bucket, i)->slot.load(std::memory_order_relaxed) == 0 &&
        at(bucket, i)->slot.compare_exchange_strong(free, slot, std::memory_order_acquire))
      return at(bucket, i);
  }
  return reap(bucket, slot);
}

/// A call of this thread whose slot lies below the stack pointer has ended otherwise. On another
/// stack of the same thread it may not have: then its return is not seen.
Call* Calls::reap(size_t bucket, uint64_t slot) {
  for (size_t i = 0; i < ways_; ++i) {
    Call* call = at(bucket, i);
    uint64_t left = call->slot.load(std::memory_order_relaxed);
    const bool is_left =
        call->thread == reader_word() && left < slot && slot - left < kMaxStackBytes;
    if (is_left && call->slot.compare_exchange_strong(left, slot, std::memory_order_acquire))
      return call;
  }
  return nullptr;
}

__attribute__((always_inline)) inline Call* Calls::find_own(Own* own,
                                                            uint64_t slot,
                                                            uint64_t function) const {
  const size_t used = own->used.load(std::memory_order_acquire);
  for (size_t i = 0; i < used; ++i) {
    Call* call = own_call(own, i);
    if (call->slot.load(std::memory_order_acquire) == slot && call->function == function)
      return call;
  }
  return nullptr;
}

__attribute__((noinline)) Call* Calls::find_shared(uint64_t slot, uint64_t function) const {
  const size_t bucket = bucket_of(slot);
  for (size_t i = 0; i < ways_; ++i) {
    Call* call = at(bucket, i);
    // Not the thread: a coroutine may return on another one.
    if (call->slot.load(std::memory_order_acquire) == slot && call->function == function)
      return call;
  }
  return nullptr;
}

/// Of a coroutine that has begun on another thread. The return address keeps apart what another
/// call has left at this slot.
__attribute__((noinline)) Call* Calls::find_elsewhere(uint64_t slot, uint64_t function) const {
  const uint64_t return_address = *reinterpret_cast<const uint64_t*>(slot);
  const size_t threads = g_used_readers.load(std::memory_order_acquire);
  for (size_t thread = 0; thread < threads; ++thread) {
    Call* call = find_own(own_of(thread), slot, function);
    if (call != nullptr && (call->return_address == return_address || call->return_address == 0))
      return call;
  }
  return nullptr;
}

__attribute__((always_inline)) inline Call* Calls::begin(uint64_t slot,
                                                         uint64_t function,
                                                         uint64_t return_address) {
  Call* call = begin_own(slot);
  if (call == nullptr) call = begin_shared(slot);
  if (call == nullptr) return nullptr;
  call->thread = spile_reader_word;
  call->function = function;
  call->return_address = return_address;
  return call;
}

__attribute__((always_inline)) inline Call* Calls::find(uint64_t slot, uint64_t function) {
  const size_t thread = thread_number();
  const bool has_own = own_memory_ != nullptr && thread != kNoThread;
  Call* call = has_own ? find_own(own_of(thread), slot, function) : nullptr;
  if (call == nullptr) call = find_shared(slot, function);
  if (call == nullptr && own_memory_ != nullptr) call = find_elsewhere(slot, function);
  return call;
}

int run_kretprobe_entry(Hook* hook, Site*, spile_regs* regs) {
  auto* probe = static_cast<ReturnProbe*>(hook->owner);
  spile_kretprobe* rp = probe->user;
  const uint64_t return_address = *reinterpret_cast<const uint64_t*>(regs->sp);
  Call* call = probe->calls.begin(regs->sp, 0, return_address);
  if (call == nullptr) {
    __atomic_fetch_add(&rp->nmissed, 1, __ATOMIC_RELAXED);
    return 0;
  }
  if (rp->entry_handler == nullptr) return 0;
  spile_kretprobe_instance instance = {rp, reinterpret_cast<void*>(return_address), call->data()};
  if (rp->entry_handler(&instance, regs) != 0) Calls::end(call);
  return 0;
}

int run_kretprobe_exit(Hook* hook, Site*, spile_regs* regs) {
  auto* probe = static_cast<ReturnProbe*>(hook->owner);
  Call* call = probe->calls.find(regs->sp, 0);
  if (call == nullptr) return 0;
  {
    const BehindReturn behind(regs);
    spile_kretprobe_instance instance = {probe->user, reinterpret_cast<void*>(call->return_address),
                                         call->data()};
    if (probe->user->handler != nullptr) probe->user->handler(&instance, regs);
  }
  Calls::end(call);
  return 0;
}

int run_fprobe_entry(Hook* hook, Site*, spile_regs* regs) {
  auto* function = static_cast<FprobeFunction*>(hook->owner);
  auto* all = function->all;
  spile_fprobe* fp = all->user;
  if ((__atomic_load_n(&fp->flags, __ATOMIC_RELAXED) & SPILE_FLAG_DISABLED) != 0) return 0;
  const uint64_t return_address = *reinterpret_cast<const uint64_t*>(regs->sp);
  Call* call = nullptr;
  if (fp->exit_handler != nullptr) {
    call = all->calls.begin(regs->sp, function->address, return_address);
    if (call == nullptr) {
      __atomic_fetch_add(&fp->nmissed, 1ul, __ATOMIC_RELAXED);
      return 0;
    }
  }
  if (fp->entry_handler == nullptr) return 0;
  const int skip = fp->entry_handler(fp, function->address, return_address, regs,
                                     call == nullptr ? nullptr : call->data());
  // It stays, so that its return finds it and need not look everywhere.
  if (skip != 0 && call != nullptr) call->return_address = 0;
  return 0;
}

int run_fprobe_exit(Hook* hook, Site*, spile_regs* regs) {
  auto* function = static_cast<FprobeFunction*>(hook->owner);
  auto* all = function->all;
  Call* call = all->calls.find(regs->sp, function->address);
  if (call == nullptr) return 0;
  const bool is_wanted =
      call->return_address != 0 &&
      (__atomic_load_n(&all->user->flags, __ATOMIC_RELAXED) & SPILE_FLAG_DISABLED) == 0;
  if (is_wanted) {
    const BehindReturn behind(regs);
    all->user->exit_handler(all->user, function->address, call->return_address, regs, call->data());
  }
  Calls::end(call);
  return 0;
}

}  // namespace spile::api
