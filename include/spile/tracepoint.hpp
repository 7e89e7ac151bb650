// Tracepoints: one nop while nobody looks.
//
//   SPILE_TRACEPOINT(server, request, (int, fd), (const char*, path))      // in a header or a source file
//
//   trace_server_request(fd, path);                                        // where it happens
//
//   auto seen = tracepoint_server_request.subscribe(                       // who wants to know
//       [](int fd, const char* path) noexcept { ... });
//
// Each one is a USDT probe as well, found from outside with no registration: `usdt:./app:server:request` in spile and
// bpftrace, `info probes stap` in gdb. It fires for them whether or not the program has callbacks of its own.
//
// Fields are integers, pointers, enums and bools; at most 8. The arguments of a pass are evaluated in any case, as those
// of a function are. C++17; C has tracepoint.h.
#pragma once
// __VA_OPT__, which compilers know in C++17, too, but warn of.
#pragma GCC system_header

#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include <spile/detail/tracepoint_core.h>

namespace spile {

/// A callback that takes itself out. If it is destroyed inside a handler, what it calls stays alive (it cannot wait for
/// itself) until release() or the end of the process.
class Subscription {
 public:
  Subscription() = default;
  Subscription(Subscription&& other) noexcept { swap(other); }
  Subscription& operator=(Subscription&& other) noexcept {
    Subscription(std::move(other)).swap(*this);
    return *this;
  }
  ~Subscription() {
    if (owner_ != nullptr && detach() == 0) destroy_(data_);
  }

  /// 0, or why subscribing failed (a negative errno; spile_error_text() has the words).
  int error() const noexcept { return error_; }
  explicit operator bool() const noexcept { return owner_ != nullptr; }

 private:
  template <class...>
  friend class Tracepoint;
  int detach() noexcept { return spile_tracepoint_detach(owner_, function_, data_); }
  void swap(Subscription& other) noexcept {
    std::swap(owner_, other.owner_);
    std::swap(function_, other.function_);
    std::swap(data_, other.data_);
    std::swap(destroy_, other.destroy_);
    std::swap(error_, other.error_);
  }

  spile_tracepoint* owner_ = nullptr;
  void (*function_)() = nullptr;
  void* data_ = nullptr;
  void (*destroy_)(void*) = nullptr;
  int error_ = 0;
};

namespace detail {

/// What a note can name. An enum is its number.
template <class T>
constexpr auto word(T value) noexcept {
  static_assert(std::is_integral_v<T> || std::is_pointer_v<T> || std::is_enum_v<T>,
                "a field of a tracepoint is an integer, a pointer, an enum or a bool");
  static_assert(sizeof(T) <= 8, "a field of a tracepoint has at most 8 bytes");
  if constexpr (std::is_enum_v<T>) {
    return static_cast<std::underlying_type_t<T>>(value);
  } else {
    return value;
  }
}

template <class T>
constexpr bool is_signed_field() {
  if constexpr (std::is_enum_v<T>) {
    return std::is_signed_v<std::underlying_type_t<T>>;
  } else {
    return std::is_integral_v<T> && std::is_signed_v<T>;
  }
}

template <class T>
inline constexpr int kNoteSize = is_signed_field<T>() ? -static_cast<int>(sizeof(T)) : static_cast<int>(sizeof(T));

template <class T>
constexpr spile_field field(const char* type, const char* name) {
  return {type, name, sizeof(T), is_signed_field<T>()};
}

/// Empty, but of a class that has one.
template <size_t N>
struct FieldList {
  spile_field fields[N == 0 ? 1 : N];
};

}  // namespace detail

template <class... Fields>
class Tracepoint {
 public:
  using Callback = void (*)(void* data, Fields...);

  constexpr Tracepoint(const char* group, const char* name, const spile_field* fields)
      : core_{group, name, fields, sizeof...(Fields), nullptr} {}

  /// As spile_tracepoint_attach: 0 or a negative errno. The callback must not throw.
  int attach(Callback callback, void* data = nullptr, int priority = SPILE_DEFAULT_PRIORITY) noexcept {
    return spile_tracepoint_attach(&core_, reinterpret_cast<void (*)()>(callback), data, priority);
  }
  /// After 0 it does not run any more. -EBUSY inside a handler.
  int detach(Callback callback, void* data = nullptr) noexcept {
    return spile_tracepoint_detach(&core_, reinterpret_cast<void (*)()>(callback), data);
  }

  /// Calls `f` with the fields until the Subscription goes away. An exception that leaves `f` ends the program.
  template <class F>
  [[nodiscard]] Subscription subscribe(F f, int priority = SPILE_DEFAULT_PRIORITY) noexcept {
    Subscription s;
    auto* kept = new (std::nothrow) F(std::move(f));
    if (kept == nullptr) {
      s.error_ = -12;  // ENOMEM
      return s;
    }
    s.function_ = reinterpret_cast<void (*)()>(&Tracepoint::template call<F>);
    s.data_ = kept;
    s.destroy_ = [](void* data) { delete static_cast<F*>(data); };
    s.error_ = spile_tracepoint_attach(&core_, s.function_, kept, priority);
    if (s.error_ != 0) {
      s.destroy_(kept);
      return s;
    }
    s.owner_ = &core_;
    return s;
  }

  bool enabled() const noexcept { return __atomic_load_n(&core_.callbacks, __ATOMIC_RELAXED) != nullptr; }
  const spile_tracepoint& core() const noexcept { return core_; }

  /// The switch is on.
  __attribute__((noinline, cold)) void run_callbacks(Fields... fields) noexcept {
    uint64_t* entered = spile_enter();
    // Pairs with the release in spile_tracepoint_attach.
    const spile_callback* c = __atomic_load_n(&core_.callbacks, __ATOMIC_ACQUIRE);
    if (c != nullptr) {
      for (; c->function != nullptr; ++c) reinterpret_cast<Callback>(c->function)(c->data, fields...);
    }
    spile_leave(entered);
  }

 private:
  template <class F>
  static void call(void* data, Fields... fields) noexcept {
    (*static_cast<F*>(data))(fields...);
  }
  spile_tracepoint core_;
};

}  // namespace spile

// ---- the macros ----

// (type, name) lists of up to 8.
#define SPILE_CAT_(a, b) SPILE_CAT2_(a, b)
#define SPILE_CAT2_(a, b) a##b
#define SPILE_COUNT_(...) SPILE_COUNT2_(_ __VA_OPT__(, ) __VA_ARGS__, 8, 7, 6, 5, 4, 3, 2, 1, 0)
#define SPILE_COUNT2_(_, f0, f1, f2, f3, f4, f5, f6, f7, n, ...) n
#define SPILE_EACH_0_(m)
#define SPILE_EACH_1_(m, a) m a
#define SPILE_EACH_2_(m, a, ...) m a, SPILE_EACH_1_(m, __VA_ARGS__)
#define SPILE_EACH_3_(m, a, ...) m a, SPILE_EACH_2_(m, __VA_ARGS__)
#define SPILE_EACH_4_(m, a, ...) m a, SPILE_EACH_3_(m, __VA_ARGS__)
#define SPILE_EACH_5_(m, a, ...) m a, SPILE_EACH_4_(m, __VA_ARGS__)
#define SPILE_EACH_6_(m, a, ...) m a, SPILE_EACH_5_(m, __VA_ARGS__)
#define SPILE_EACH_7_(m, a, ...) m a, SPILE_EACH_6_(m, __VA_ARGS__)
#define SPILE_EACH_8_(m, a, ...) m a, SPILE_EACH_7_(m, __VA_ARGS__)
#define SPILE_EACH_(m, ...) \
  SPILE_CAT_(SPILE_CAT_(SPILE_EACH_, SPILE_COUNT_(__VA_ARGS__)), _)(m __VA_OPT__(, ) __VA_ARGS__)
#define SPILE_TYPE_(type, name) type
#define SPILE_NAME_(type, name) name
#define SPILE_PARAMETER_(type, name) type name
#define SPILE_FIELD_(type, name) ::spile::detail::field<type>(#type, #name)

#define SPILE_OP_(n) SPILE_OPERAND_(n, ::spile::detail::word(v##n), ::spile::detail::kNoteSize<T##n>)
#define SPILE_PROBE_(group, name, n, ...) \
  __asm__ volatile(SPILE_PROBE_ASM_(group, name, SPILE_TEXT_##n##_) : : __VA_ARGS__ : "memory")
#define SPILE_INLINE_ __attribute__((always_inline)) static inline

// The probe of each number of fields, and the switch. In assembly the names must be there as text, so each event has its
// own.
#define SPILE_EVENT_(group, name)                                                                              \
  struct spile_event_##group##_##name {                                                                        \
    SPILE_INLINE_ bool is_on() {                                                                               \
      __asm__ goto(SPILE_SWITCH_ASM_(group, name) : : : : spile_on);                                           \
      return false;                                                                                            \
    spile_on:                                                                                                  \
      return true;                                                                                             \
    }                                                                                                          \
    SPILE_INLINE_ void probe() { __asm__ volatile(SPILE_PROBE_ASM_(group, name, "") : : : "memory"); }         \
    template <class T0>                                                                                        \
    SPILE_INLINE_ void probe(T0 v0) {                                                                          \
      SPILE_PROBE_(group, name, 1, SPILE_OP_(0));                                                              \
    }                                                                                                          \
    template <class T0, class T1>                                                                              \
    SPILE_INLINE_ void probe(T0 v0, T1 v1) {                                                                   \
      SPILE_PROBE_(group, name, 2, SPILE_OP_(0), SPILE_OP_(1));                                                \
    }                                                                                                          \
    template <class T0, class T1, class T2>                                                                    \
    SPILE_INLINE_ void probe(T0 v0, T1 v1, T2 v2) {                                                            \
      SPILE_PROBE_(group, name, 3, SPILE_OP_(0), SPILE_OP_(1), SPILE_OP_(2));                                  \
    }                                                                                                          \
    template <class T0, class T1, class T2, class T3>                                                          \
    SPILE_INLINE_ void probe(T0 v0, T1 v1, T2 v2, T3 v3) {                                                     \
      SPILE_PROBE_(group, name, 4, SPILE_OP_(0), SPILE_OP_(1), SPILE_OP_(2), SPILE_OP_(3));                    \
    }                                                                                                          \
    template <class T0, class T1, class T2, class T3, class T4>                                                \
    SPILE_INLINE_ void probe(T0 v0, T1 v1, T2 v2, T3 v3, T4 v4) {                                              \
      SPILE_PROBE_(group, name, 5, SPILE_OP_(0), SPILE_OP_(1), SPILE_OP_(2), SPILE_OP_(3), SPILE_OP_(4));      \
    }                                                                                                          \
    template <class T0, class T1, class T2, class T3, class T4, class T5>                                      \
    SPILE_INLINE_ void probe(T0 v0, T1 v1, T2 v2, T3 v3, T4 v4, T5 v5) {                                       \
      SPILE_PROBE_(group, name, 6, SPILE_OP_(0), SPILE_OP_(1), SPILE_OP_(2), SPILE_OP_(3), SPILE_OP_(4),       \
                   SPILE_OP_(5));                                                                              \
    }                                                                                                          \
    template <class T0, class T1, class T2, class T3, class T4, class T5, class T6>                            \
    SPILE_INLINE_ void probe(T0 v0, T1 v1, T2 v2, T3 v3, T4 v4, T5 v5, T6 v6) {                                \
      SPILE_PROBE_(group, name, 7, SPILE_OP_(0), SPILE_OP_(1), SPILE_OP_(2), SPILE_OP_(3), SPILE_OP_(4),       \
                   SPILE_OP_(5), SPILE_OP_(6));                                                                \
    }                                                                                                          \
    template <class T0, class T1, class T2, class T3, class T4, class T5, class T6, class T7>                  \
    SPILE_INLINE_ void probe(T0 v0, T1 v1, T2 v2, T3 v3, T4 v4, T5 v5, T6 v6, T7 v7) {                         \
      SPILE_PROBE_(group, name, 8, SPILE_OP_(0), SPILE_OP_(1), SPILE_OP_(2), SPILE_OP_(3), SPILE_OP_(4),       \
                   SPILE_OP_(5), SPILE_OP_(6), SPILE_OP_(7));                                                  \
    }                                                                                                          \
  };

#define SPILE_FIELDS_TEXT_(...) SPILE_STRING_(SPILE_EACH_(SPILE_PARAMETER_, __VA_ARGS__))

/// A class: fields that several events share. Events of two classes of one name have no named fields outside.
#define SPILE_TRACEPOINT_CLASS(cls, ...)                        \
  SPILE_NOTE_OF_CLASS_(#cls, SPILE_FIELDS_TEXT_(__VA_ARGS__))   \
  SPILE_CLASS_(cls __VA_OPT__(, ) __VA_ARGS__)

#define SPILE_CLASS_(cls, ...)                                                                        \
  struct cls {                                                                                        \
    using Point = ::spile::Tracepoint<SPILE_EACH_(SPILE_TYPE_, __VA_ARGS__)>;                         \
    static constexpr ::spile::detail::FieldList<SPILE_COUNT_(__VA_ARGS__)> kFields = {                \
        {SPILE_EACH_(SPILE_FIELD_, __VA_ARGS__)}};                                                    \
    template <class Event>                                                                            \
    SPILE_INLINE_ void pass(Point& point __VA_OPT__(, ) SPILE_EACH_(SPILE_PARAMETER_, __VA_ARGS__)) { \
      Event::probe(SPILE_EACH_(SPILE_NAME_, __VA_ARGS__));                                            \
      if (Event::is_on()) point.run_callbacks(SPILE_EACH_(SPILE_NAME_, __VA_ARGS__));                 \
    }                                                                                                 \
  };

/// An event of a class: trace_GROUP_NAME(...) and tracepoint_GROUP_NAME.
#define SPILE_TRACEPOINT_EVENT(cls, group, name)                                              \
  SPILE_NOTE_OF_CLASS_EVENT_(#group, #name, #cls)                                             \
  SPILE_EVENT_(group, name)                                                                   \
  inline cls::Point tracepoint_##group##_##name{#group, #name, cls::kFields.fields};          \
  template <class... Values>                                                                  \
  SPILE_INLINE_ void trace_##group##_##name(Values... values) {                               \
    cls::pass<spile_event_##group##_##name>(tracepoint_##group##_##name, values...);          \
  }

#define SPILE_TRACEPOINT(group, name, ...) \
  SPILE_TRACEPOINT_CONDITION(group, name, true __VA_OPT__(, ) __VA_ARGS__)

/// Passes only where `condition`, an expression of the fields, is true: for callbacks and for tracers from outside. It is
/// evaluated at each pass, also while nobody looks.
#define SPILE_TRACEPOINT_CONDITION(group, name, condition, ...)                                                 \
  SPILE_NOTE_OF_(#group, #name, SPILE_FIELDS_TEXT_(__VA_ARGS__))                                                \
  SPILE_CLASS_(spile_class_##group##_##name __VA_OPT__(, ) __VA_ARGS__)                                         \
  SPILE_EVENT_(group, name)                                                                                     \
  inline spile_class_##group##_##name::Point tracepoint_##group##_##name{                                       \
      #group, #name, spile_class_##group##_##name::kFields.fields};                                             \
  SPILE_INLINE_ void trace_##group##_##name(SPILE_EACH_(SPILE_PARAMETER_, __VA_ARGS__)) {                       \
    if (!(condition)) return;                                                                                   \
    spile_class_##group##_##name::pass<spile_event_##group##_##name>(                                           \
        tracepoint_##group##_##name __VA_OPT__(, ) SPILE_EACH_(SPILE_NAME_, __VA_ARGS__));                      \
  }
