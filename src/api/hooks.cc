#include "api/hooks.h"

#include "api/readers.h"

namespace spile::api {
namespace {

constexpr uint64_t kMaxStackBytes = 8 << 20;

__attribute__((always_inline)) inline uint64_t return_address_at(uint64_t slot) {
  return *reinterpret_cast<const uint64_t*>(slot);
}

/// At a `ret` a handler sees what is right behind it. The next handler gets its own view (hit.cc).
__attribute__((always_inline)) inline void show_return(spile_regs* regs) {
  regs->ip = return_address_at(regs->sp);
  regs->sp += 8;
}

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

__attribute__((always_inline)) inline Calls::Own* Calls::my_own() const {
  const auto* word = reinterpret_cast<const uint8_t*>(spile_thread.word);
  if (own_memory_ == nullptr || word == nullptr) return nullptr;
  return own_of(static_cast<size_t>(word - g_reader_table));
}

__attribute__((always_inline)) inline Call* Calls::begin_own(uint64_t slot) {
  Own* own = my_own();
  if (own == nullptr) return nullptr;
  const size_t stride = stride_;
  const uint8_t* const begin = own->calls();
  Call* free = nullptr;
  for (uint8_t* p = own->calls() + own->used_bytes.load(std::memory_order_relaxed); p != begin;) {
    p -= stride;
    auto* call = reinterpret_cast<Call*>(p);
    const uint64_t taken = call->slot.load(std::memory_order_relaxed);
    if (taken == slot) return call;
    if (taken == 0) free = call;
  }
  if (free != nullptr) free->slot.store(slot, std::memory_order_relaxed);
  return free;
}

/// One more of the thread's own places.
Call* Calls::begin_further_own(uint64_t slot) {
  Own* own = my_own();
  if (own == nullptr) return nullptr;
  const size_t used = own->used_bytes.load(std::memory_order_relaxed);
  if (used == kOwnWays * stride_) return nullptr;
  auto* call = reinterpret_cast<Call*>(own->calls() + used);
  call->slot.store(slot, std::memory_order_relaxed);
  own->used_bytes.store(used + stride_, std::memory_order_release);
  return call;
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
        call->thread == spile_thread.word && left < slot && slot - left < kMaxStackBytes;
    if (is_left && call->slot.compare_exchange_strong(left, slot, std::memory_order_acquire))
      return call;
  }
  return nullptr;
}

/// One whose exit is not wanted has no return address any more.
__attribute__((always_inline)) inline bool is_call(const Call* call,
                                                   uint64_t function,
                                                   uint64_t return_address) {
  return call->function == function &&
         (call->return_address == return_address || call->return_address == 0);
}

__attribute__((always_inline)) inline Call* Calls::find_in(Own* own,
                                                           uint64_t slot,
                                                           uint64_t function,
                                                           uint64_t return_address) const {
  const size_t stride = stride_;
  const uint8_t* const end = own->calls() + own->used_bytes.load(std::memory_order_acquire);
  for (uint8_t* p = own->calls(); p != end; p += stride) {
    auto* call = reinterpret_cast<Call*>(p);
    if (call->slot.load(std::memory_order_acquire) == slot &&
        is_call(call, function, return_address))
      return call;
  }
  return nullptr;
}

__attribute__((always_inline)) inline Call* Calls::find_own(uint64_t slot,
                                                            uint64_t function) const {
  Own* own = my_own();
  return own == nullptr ? nullptr : find_in(own, slot, function, return_address_at(slot));
}

Call* Calls::find_shared(uint64_t slot, uint64_t function, uint64_t return_address) const {
  const size_t bucket = bucket_of(slot);
  for (size_t i = 0; i < ways_; ++i) {
    Call* call = at(bucket, i);
    // Not the thread: a coroutine may return on another one.
    if (call->slot.load(std::memory_order_acquire) == slot &&
        is_call(call, function, return_address))
      return call;
  }
  return nullptr;
}

/// Of a coroutine that has begun on another thread.
Call* Calls::find_elsewhere(uint64_t slot, uint64_t function, uint64_t return_address) const {
  const size_t threads = g_used_readers.load(std::memory_order_acquire);
  for (size_t thread = 0; thread < threads; ++thread) {
    Call* call = find_in(own_of(thread * kReaderBytes), slot, function, return_address);
    if (call != nullptr) return call;
  }
  return nullptr;
}

Call* Calls::begin_anywhere(uint64_t slot) {
  Call* call = begin_own(slot);
  if (call == nullptr) call = begin_further_own(slot);
  if (call != nullptr) return call;
  call = begin_shared(slot);
  if (call != nullptr) call->thread = spile_thread.word;
  return call;
}

Call* Calls::find_anywhere(uint64_t slot, uint64_t function) const {
  const uint64_t return_address = return_address_at(slot);
  Call* call = find_own(slot, function);
  if (call == nullptr) call = find_shared(slot, function, return_address);
  if (call == nullptr && own_memory_ != nullptr)
    call = find_elsewhere(slot, function, return_address);
  return call;
}

int run_kretprobe_entry(Hook* hook, Site*, spile_regs* regs) {
  auto* probe = static_cast<ReturnProbe*>(hook->owner);
  spile_kretprobe* rp = probe->user;
  const uint64_t return_address = return_address_at(regs->sp);
  Call* call = probe->calls.begin_anywhere(regs->sp);
  if (call == nullptr) {
    __atomic_fetch_add(&rp->nmissed, 1, __ATOMIC_RELAXED);
    return 0;
  }
  Calls::begin(call, 0, return_address);
  if (rp->entry_handler == nullptr) return 0;
  spile_kretprobe_instance instance = {rp, reinterpret_cast<void*>(return_address), call->data()};
  if (rp->entry_handler(&instance, regs) != 0) Calls::end(call);
  return 0;
}

int run_kretprobe_exit(Hook* hook, Site*, spile_regs* regs) {
  auto* probe = static_cast<ReturnProbe*>(hook->owner);
  Call* call = probe->calls.find_anywhere(regs->sp, 0);
  if (call == nullptr) return 0;
  show_return(regs);
  spile_kretprobe_instance instance = {probe->user, reinterpret_cast<void*>(call->return_address),
                                       call->data()};
  if (probe->user->handler != nullptr) probe->user->handler(&instance, regs);
  Calls::end(call);
  return 0;
}

// An fprobe's pair is measured in instructions: what is common goes straight, with nothing to keep
// in registers but the call, and everything else is a jump to a function of its own.

namespace {

__attribute__((always_inline)) inline bool is_disabled(const spile_fprobe* fp) {
  return (__atomic_load_n(&fp->flags, __ATOMIC_RELAXED) & SPILE_FLAG_DISABLED) != 0;
}

__attribute__((always_inline)) inline int enter(FprobeFunction* function,
                                                Call* call,
                                                spile_regs* regs) {
  spile_fprobe* fp = function->all->user;
  const uint64_t return_address = return_address_at(regs->sp);
  Calls::begin(call, function->address, return_address);
  if (fp->entry_handler == nullptr) return 0;
  // It stays, so that its return finds it and need not look everywhere.
  if (fp->entry_handler(fp, function->address, return_address, regs, call->data()) != 0)
    call->return_address = 0;
  return 0;
}

__attribute__((always_inline)) inline int leave(FprobeFunction* function,
                                                Call* call,
                                                spile_regs* regs) {
  spile_fprobe* fp = function->all->user;
  if (call->return_address != 0 && !is_disabled(fp)) {
    show_return(regs);
    fp->exit_handler(fp, function->address, call->return_address, regs, call->data());
  }
  Calls::end(call);
  return 0;
}

__attribute__((noinline)) int enter_slowly(FprobeFunction* function, spile_regs* regs) {
  Call* call = function->all->calls.begin_anywhere(regs->sp);
  if (call != nullptr) return enter(function, call, regs);
  __atomic_fetch_add(&function->all->user->nmissed, 1ul, __ATOMIC_RELAXED);
  return 0;
}

__attribute__((noinline)) int leave_slowly(FprobeFunction* function, spile_regs* regs) {
  Call* call = function->all->calls.find_anywhere(regs->sp, function->address);
  return call == nullptr ? 0 : leave(function, call, regs);
}

}  // namespace

int run_fprobe_entry(Hook* hook, Site*, spile_regs* regs) {
  auto* function = static_cast<FprobeFunction*>(hook->owner);
  if (is_disabled(function->all->user)) return 0;
  Call* call = function->all->calls.begin_own(regs->sp);
  return call != nullptr ? enter(function, call, regs) : enter_slowly(function, regs);
}

int run_fprobe_entry_only(Hook* hook, Site*, spile_regs* regs) {
  auto* function = static_cast<FprobeFunction*>(hook->owner);
  spile_fprobe* fp = function->all->user;
  if (!is_disabled(fp) && fp->entry_handler != nullptr)
    fp->entry_handler(fp, function->address, return_address_at(regs->sp), regs, nullptr);
  return 0;
}

int run_fprobe_exit(Hook* hook, Site*, spile_regs* regs) {
  auto* function = static_cast<FprobeFunction*>(hook->owner);
  Call* call = function->all->calls.find_own(regs->sp, function->address);
  return call != nullptr ? leave(function, call, regs) : leave_slowly(function, regs);
}

}  // namespace spile::api
