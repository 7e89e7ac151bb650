// Probes on the program itself, as objects that undo themselves. C++17; what a handler may do is in docs/library.md.
//
//   spile::Kprobe probe("parse_header");
//   probe.before([](spile::Regs& regs) { std::printf("%lu\n", regs.argument(0)); });
//   if (probe.add() != 0) std::fprintf(stderr, "%s\n", spile_error_text());
//
// add() and the like answer 0 or a negative errno, as probes.h says. Handlers must not throw: the program would end.
// An object that is destroyed inside a handler cannot wait for itself: its handlers stay, and what they need.
#pragma once

#include <functional>
#include <memory>
#include <type_traits>
#include <utility>

#include <spile/probes.h>

namespace spile {

/// What a handler sees of the program.
class Regs : public spile_regs {
 public:
  static Regs& from(spile_regs* regs) noexcept { return *static_cast<Regs*>(regs); }
  /// Integer or pointer argument `n` from 0, at a function's entry.
  template <class T = unsigned long>
  T argument(unsigned n) const noexcept {
    return as<T>(spile_argument(this, n));
  }
  /// Arguments 0 to 5.
  template <class T>
  void set_argument(unsigned n, T value) noexcept {
    unsigned long spile_regs::* const places[] = {&spile_regs::di, &spile_regs::si, &spile_regs::dx,
                                                  &spile_regs::cx, &spile_regs::r8, &spile_regs::r9};
    if (n < 6) this->*places[n] = word(value);
  }
  template <class T = unsigned long>
  T return_value() const noexcept {
    return as<T>(ax);
  }
  template <class T>
  void set_return_value(T value) noexcept {
    ax = word(value);
  }
  /// In a before-handler at a function's entry, which then returns 1: the function does not run.
  template <class T>
  void return_from_function(T value) noexcept {
    spile_return_from_function(this, word(value));
  }

 private:
  template <class T>
  static T as(unsigned long value) noexcept {
    if constexpr (std::is_pointer_v<T>) {
      return reinterpret_cast<T>(value);
    } else {
      return static_cast<T>(value);
    }
  }
  template <class T>
  static unsigned long word(T value) noexcept {
    if constexpr (std::is_pointer_v<T>) {
      return reinterpret_cast<unsigned long>(value);
    } else {
      return static_cast<unsigned long>(value);
    }
  }
};

namespace detail {

/// The part that handlers use: it stays where it is, and outlives an owner that cannot take it out.
template <class State, int (*kUnregister)(typename State::Raw*)>
class Registered {
 public:
  Registered() : state_(new State) {}
  Registered(Registered&&) noexcept = default;
  Registered& operator=(Registered&& other) noexcept {
    if (this != &other) {
      end();
      state_ = std::move(other.state_);
    }
    return *this;
  }
  ~Registered() { end(); }

  int remove() noexcept { return kUnregister(&state_->raw); }

 protected:
  State& state() const { return *state_; }

 private:
  void end() noexcept {
    if (state_ == nullptr || state_->raw.internal == nullptr) return;
    if (kUnregister(&state_->raw) != 0) (void)state_.release();
  }
  std::unique_ptr<State> state_;
};

/// A handler may return int, bool or nothing.
template <class F, class... Arguments>
int call(F& f, Arguments&&... arguments) {
  if constexpr (std::is_void_v<std::invoke_result_t<F&, Arguments...>>) {
    f(std::forward<Arguments>(arguments)...);
    return 0;
  } else {
    return static_cast<int>(f(std::forward<Arguments>(arguments)...));
  }
}

struct KprobeState {
  using Raw = spile_kprobe;
  spile_kprobe raw = {};
  std::function<int(Regs&)> before;
  std::function<void(Regs&)> behind;
};

}  // namespace detail

/// Before and behind one instruction.
class Kprobe : public detail::Registered<detail::KprobeState, spile_unregister_kprobe> {
 public:
  /// "f" or "libc.so.6:f"; the text must stay.
  explicit Kprobe(const char* symbol, unsigned offset = 0) {
    state().raw.symbol_name = symbol;
    state().raw.offset = offset;
  }
  explicit Kprobe(void* address) { state().raw.addr = address; }
  template <class Result, class... Arguments>
  explicit Kprobe(Result (*function)(Arguments...)) : Kprobe(reinterpret_cast<void*>(function)) {}

  /// f(Regs&): not 0 (or true): the program goes on at regs.ip instead.
  template <class F>
  Kprobe& before(F f) {
    state().before = [f = std::move(f)](Regs& regs) mutable { return detail::call(f, regs); };
    state().raw.pre_handler = [](spile_kprobe* p, spile_regs* regs) noexcept {
      return static_cast<detail::KprobeState*>(p->data)->before(Regs::from(regs));
    };
    return *this;
  }
  template <class F>
  Kprobe& behind(F f) {
    state().behind = std::move(f);
    state().raw.post_handler = [](spile_kprobe* p, spile_regs* regs, unsigned long) noexcept {
      static_cast<detail::KprobeState*>(p->data)->behind(Regs::from(regs));
    };
    return *this;
  }
  /// SPILE_ALLOW_TRAP.
  Kprobe& options(unsigned options) noexcept {
    state().raw.options = options;
    return *this;
  }
  int add() noexcept {
    state().raw.data = &state();
    return spile_register_kprobe(&state().raw);
  }
  int enable() noexcept { return spile_enable_kprobe(&state().raw); }
  int disable() noexcept { return spile_disable_kprobe(&state().raw); }
  unsigned long missed() const noexcept { return __atomic_load_n(&state().raw.nmissed, __ATOMIC_RELAXED); }
  void* address() const noexcept { return state().raw.addr; }
};

namespace detail {
template <class Data>
struct KretprobeState {
  using Raw = spile_kretprobe;
  spile_kretprobe raw = {};
  std::function<int(Regs&, Data&)> entry;
  std::function<void(Regs&, Data&)> exit;
  static KretprobeState& of(spile_kretprobe_instance* ri) {
    return *static_cast<KretprobeState*>(ri->rp->kp.data);
  }
};
struct Nothing {};
}  // namespace detail

/// Entry and returns of one function; each call has a Data of its own, which begins as Data{}.
template <class Data = detail::Nothing>
class Kretprobe : public detail::Registered<detail::KretprobeState<Data>, spile_unregister_kretprobe> {
  static_assert(std::is_trivially_destructible_v<Data> && sizeof(Data) <= 4096,
                "nobody destroys the data of a call that ends by an exception");
  static_assert(alignof(Data) <= 16, "data is aligned to 16 bytes");
  using State = detail::KretprobeState<Data>;

 public:
  explicit Kretprobe(const char* symbol) { this->state().raw.kp.symbol_name = symbol; }
  /// f(Regs&, Data&): not 0 (or true): the return of this call is not wanted.
  template <class F>
  Kretprobe& entry(F f) {
    this->state().entry = [f = std::move(f)](Regs& regs, Data& data) mutable {
      return detail::call(f, regs, data);
    };
    return *this;
  }
  template <class F>
  Kretprobe& exit(F f) {
    this->state().exit = std::move(f);
    return *this;
  }
  Kretprobe& options(unsigned options) noexcept {
    this->state().raw.kp.options = options;
    return *this;
  }
  /// Calls that may be under way at once.
  Kretprobe& max_active(int calls) noexcept {
    this->state().raw.maxactive = calls;
    return *this;
  }
  int add() noexcept {
    spile_kretprobe& raw = this->state().raw;
    raw.kp.data = &this->state();
    raw.data_size = sizeof(Data);
    raw.entry_handler = [](spile_kretprobe_instance* ri, spile_regs* regs) noexcept {
      Data& data = *new (ri->data) Data{};
      State& state = State::of(ri);
      return state.entry ? state.entry(Regs::from(regs), data) : 0;
    };
    raw.handler = [](spile_kretprobe_instance* ri, spile_regs* regs) noexcept {
      State& state = State::of(ri);
      if (state.exit) state.exit(Regs::from(regs), *static_cast<Data*>(ri->data));
      return 0;
    };
    return spile_register_kretprobe(&raw);
  }
  int missed() const noexcept { return __atomic_load_n(&this->state().raw.nmissed, __ATOMIC_RELAXED); }
};

/// What an Fprobe's handlers get.
template <class Data>
struct FunctionCall {
  unsigned long function;        ///< its address
  unsigned long return_address;
  Regs& regs;
  Data& data;  ///< of this call; only where there is an exit handler
};

namespace detail {
template <class Data>
struct FprobeState {
  using Raw = spile_fprobe;
  spile_fprobe raw = {};
  std::function<int(FunctionCall<Data>)> entry;
  std::function<void(FunctionCall<Data>)> exit;
};
}  // namespace detail

/// Entries and returns of many functions.
template <class Data = detail::Nothing>
class Fprobe : public detail::Registered<detail::FprobeState<Data>, spile_unregister_fprobe> {
  static_assert(std::is_trivially_destructible_v<Data> && sizeof(Data) <= 120, "at most 120 bytes a call");
  using State = detail::FprobeState<Data>;

 public:
  template <class F>
  Fprobe& entry(F f) {
    this->state().entry = [f = std::move(f)](FunctionCall<Data> c) mutable { return detail::call(f, c); };
    return *this;
  }
  template <class F>
  Fprobe& exit(F f) {
    this->state().exit = std::move(f);
    this->state().raw.exit_handler = [](spile_fprobe* fp, unsigned long ip, unsigned long ret, spile_regs* regs,
                                        void* data) noexcept {
      static_cast<State*>(fp->data)->exit({ip, ret, Regs::from(regs), *static_cast<Data*>(data)});
    };
    return *this;
  }
  Fprobe& options(unsigned options) noexcept {
    this->state().raw.options = options;
    return *this;
  }
  /// All functions that match, and not `except`. As spile_register_fprobe.
  int add(const char* filter, const char* except = nullptr) noexcept {
    return prepared([&](spile_fprobe* raw) { return spile_register_fprobe(raw, filter, except); });
  }
  int add_symbols(const char** symbols, int count) noexcept {
    return prepared([&](spile_fprobe* raw) { return spile_register_fprobe_syms(raw, symbols, count); });
  }
  /// Soft: the code stays patched.
  void enable(bool on) noexcept {
    __atomic_store_n(&this->state().raw.flags, on ? 0u : unsigned{SPILE_FLAG_DISABLED}, __ATOMIC_RELAXED);
  }
  unsigned long missed() const noexcept { return __atomic_load_n(&this->state().raw.nmissed, __ATOMIC_RELAXED); }
  /// Functions of the filter that were left out: no probe can be put there safely.
  size_t refused() const noexcept { return this->state().raw.refused; }

 private:
  template <class F>
  int prepared(F add) noexcept {
    spile_fprobe& raw = this->state().raw;
    raw.data = &this->state();
    raw.entry_data_size = raw.exit_handler == nullptr ? 0 : sizeof(Data);
    raw.entry_handler = [](spile_fprobe* fp, unsigned long ip, unsigned long ret, spile_regs* regs,
                           void* data) noexcept {
      static Data nobody{};
      Data& own = data == nullptr ? nobody : *new (data) Data{};
      auto& state = *static_cast<State*>(fp->data);
      return state.entry ? state.entry({ip, ret, Regs::from(regs), own}) : 0;
    };
    return add(&raw);
  }
};

}  // namespace spile
