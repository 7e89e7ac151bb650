// What modules have besides probes and messages: parameters from the environment, stack traces,
// older forms of handlers.
#include <dlfcn.h>
#include <spile/module.h>
#include <sys/auxv.h>
#include <unwind.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#include <spile/detail/fprobe_6_1.h>

// The section of hit.cc and trampoline.S.
extern "C" const uint8_t __start_spile_hit_text[], __stop_spile_hit_text[];

namespace {

// ---- parameters ----

bool set_bool(const char* text, void* to) {
  const bool on = std::strchr("yY1", *text) != nullptr || ::strcasecmp(text, "on") == 0;
  const bool off = std::strchr("nN0", *text) != nullptr || ::strcasecmp(text, "off") == 0;
  if (*text == 0 || on == off) return false;
  *static_cast<bool*>(to) = on;
  return true;
}

template <typename T>
bool set_number(const char* text, void* to) {
  char* end = nullptr;
  errno = 0;
  if constexpr (std::is_signed_v<T>) {
    const long value = std::strtol(text, &end, 0);
    if (errno != 0 || value < std::numeric_limits<T>::min() ||
        value > std::numeric_limits<T>::max())
      return false;
    if (end != text && *end == 0) *static_cast<T*>(to) = static_cast<T>(value);
  } else {
    const unsigned long value = std::strtoul(text, &end, 0);
    if (errno != 0 || std::strchr(text, '-') != nullptr || value > std::numeric_limits<T>::max())
      return false;
    if (end != text && *end == 0) *static_cast<T*>(to) = static_cast<T>(value);
  }
  return end != text && *end == 0;
}

bool set_string(const char* text, void* to, size_t size) {
  const size_t bytes = std::strlen(text) + 1;
  if (bytes > size) return false;
  std::memcpy(to, text, bytes);
  return true;
}

bool set_parameter(spile_parameter_type type, const char* text, void* to, size_t size) {
  switch (type) {
    case SPILE_PARAMETER_bool: return set_bool(text, to);
    case SPILE_PARAMETER_byte: return set_number<unsigned char>(text, to);
    case SPILE_PARAMETER_short: return set_number<short>(text, to);
    case SPILE_PARAMETER_ushort: return set_number<unsigned short>(text, to);
    case SPILE_PARAMETER_int: return set_number<int>(text, to);
    case SPILE_PARAMETER_uint: return set_number<unsigned>(text, to);
    case SPILE_PARAMETER_long: return set_number<long>(text, to);
    case SPILE_PARAMETER_ulong: return set_number<unsigned long>(text, to);
    case SPILE_PARAMETER_charp: *static_cast<const char**>(to) = text; return true;
    case SPILE_PARAMETER_string: return set_string(text, to, size);
  }
  return false;
}

// ---- stack traces ----

const void* base_of(const void* address) {
  Dl_info info = {};
  return ::dladdr(address, &info) == 0 ? nullptr : info.dli_fbase;
}

struct Walk {
  unsigned long* to;
  unsigned size, skip, count;
  const void* library;  ///< whose frames are left out
};

/// Between a handler and the probed function.
bool is_of_the_hit_path(uintptr_t ip) {
  return ip >= reinterpret_cast<uintptr_t>(__start_spile_hit_text) &&
         ip < reinterpret_cast<uintptr_t>(__stop_spile_hit_text);
}

_Unwind_Reason_Code take_frame(_Unwind_Context* context, void* data) {
  auto& walk = *static_cast<Walk*>(data);
  const uintptr_t ip = _Unwind_GetIP(context);
  if (ip == 0) return _URC_END_OF_STACK;
  if (is_of_the_hit_path(ip)) {
    walk.skip = 0;  // handlers are inlined as the compiler likes: what follows is never left out
    return _URC_NO_REASON;
  }
  if (walk.library != nullptr && base_of(reinterpret_cast<void*>(ip)) == walk.library)
    return _URC_NO_REASON;
  if (walk.skip > 0) {
    --walk.skip;
    return _URC_NO_REASON;
  }
  if (walk.count == walk.size) return _URC_END_OF_STACK;
  walk.to[walk.count++] = ip;
  return _URC_NO_REASON;
}

/// Null where it is linked into the program itself: its frames are then told from nobody's.
const void* own_library() {
  const void* program = base_of(reinterpret_cast<const void*>(::getauxval(AT_PHDR)));
  const void* own = base_of(reinterpret_cast<const void*>(&spile_stack_trace));
  return own == program ? nullptr : own;
}

}  // namespace

extern "C" __attribute__((noinline)) unsigned spile_stack_trace(unsigned long* to,
                                                                unsigned size,
                                                                unsigned skip) {
  if (to == nullptr) return 0;
  const void* library = own_library();
  Walk walk{to, size, library == nullptr ? skip + 1 : skip, 0, library};
  (void)_Unwind_Backtrace(take_frame, &walk);
  return walk.count;
}

extern "C" int spile_fprobe_entry_6_1(
    spile_fprobe* own, unsigned long entry_ip, unsigned long, spile_regs* regs, void* entry_data) {
  auto* fp = reinterpret_cast<spile_fprobe_6_1*>(own);
  fp->entry_handler(fp, entry_ip, regs, entry_data);
  return 0;
}

extern "C" void spile_fprobe_exit_6_1(
    spile_fprobe* own, unsigned long entry_ip, unsigned long, spile_regs* regs, void* entry_data) {
  auto* fp = reinterpret_cast<spile_fprobe_6_1*>(own);
  fp->exit_handler(fp, entry_ip, regs, entry_data);
}

extern "C" void spile_module_parameter(const char* name,
                                       spile_parameter_type type,
                                       void* to,
                                       size_t size) {
  constexpr char kPrefix[] = "SPILE_PARAM_";
  char variable[128];
  const int n = std::snprintf(variable, sizeof variable, "%s%s", kPrefix, name);
  if (n < 0 || static_cast<size_t>(n) >= sizeof variable) return;
  const char* text = std::getenv(variable);
  if (text == nullptr || set_parameter(type, text, to, size)) return;
  spile_printk("%s: `%s' invalid for parameter `%s'\n", program_invocation_short_name, text, name);
}
