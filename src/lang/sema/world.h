// What sema asks of the machine. Tests fake it; session/world.cc is the real one.
//
// Every answer is about names only: nothing is attached, no process is stopped. Answers may be
// cached: within one World the same question has the same answer.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "lang/sema/structure.h"

namespace spile::lang {

/// One function that a uprobe pattern names.
struct UserFunction {
  std::string path;    ///< the file as resolved ("/usr/lib/x86_64-linux-gnu/libc.so.6"), seen from
                       ///< our mount namespace
  std::string symbol;  ///< as in the symbol table, without a version ("fopen")
};

/// One function that a C++ name means.
struct CppFunction {
  UserFunction function;  ///< with its mangled symbol
  std::string name;       ///< "ns::f(int)"
};

/// One kernel function that a kprobe pattern names.
struct KernelFunction {
  std::string symbol;
  std::string module;  ///< empty: the kernel proper
};

/// One field of a tracepoint's record, from its format file.
struct EventField {
  enum class Shape : uint8_t {
    kInt,         ///< an integer of 1, 2, 4 or 8 bytes, enum or bool
    kPointer,     ///< 8 bytes: `const char * filename`, `struct file *`
    kCharArray,   ///< char name[N], size bytes: read as a string
    kIntArray,    ///< any other array of fixed size
    kDataLocStr,  ///< __data_loc char[]: u32 at offset, low 16 bits say where the string is in the
                  ///< record, high its size
    kRelLocStr,   ///< __rel_loc char[]: the same, counted from the end of this u32
    kDataLoc,     ///< __data_loc of anything else
    kOther,       ///< a struct, ...
  };
  std::string name;
  std::string type;     ///< as the format file spells it, for -lv: "unsigned int", "char[16]",
                        ///< "__data_loc char[]"
  uint32_t offset = 0;  ///< bytes from the start of the record
  uint32_t size = 0;    ///< bytes in the record
  bool is_signed = false;
  Shape shape = Shape::kInt;
};

/// One event that a tracepoint pattern names.
struct Tracepoint {
  std::string category;  ///< "sched"
  std::string event;     ///< "sched_switch"
  uint32_t record_size =
      0;  ///< bytes up to the end of the last fixed field, common fields (8 bytes) included
  std::vector<EventField> fields;  ///< common_* fields included
};

/// What the kernel's type information (BTF) describes by its arguments.
enum class TypedEvent : uint8_t {
  kRawTracepoint,  ///< what TP_PROTO says
  kFunctionEntry,
  kFunctionExit,  ///< the arguments, then the field "retval" where it returns something
  kIterator,      ///< the fields of struct bpf_iter__NAME
};

/// Where one argument of a static tracepoint is when that is reached.
struct UsdtArgument {
  enum class Place : uint8_t {
    kConstant,    ///< `number` itself
    kRegister,    ///< `size` bytes at offset `base` of the saved registers (struct pt_regs)
    kMemory,      ///< `size` bytes at: base + index * scale + number, or ip + ... (from_site)
    kUnreadable,  ///< `problem` says why
  };
  std::string text;  ///< as the note spells it: "-4@%edi"
  Place place = Place::kConstant;
  uint32_t size = 8;  ///< bytes: 1, 2, 4, 8
  bool is_signed = false;
  int base = -1, index = -1;  ///< offsets into struct pt_regs; -1: none
  uint32_t scale = 1;
  bool from_site = false;  ///< kMemory: the tracepoint's own address is added: a symbol's place
  int64_t number = 0;
  std::string problem;
};

/// What an argument of a static tracepoint is called, where the program says so.
struct UsdtField {
  std::string type;  ///< as the program spells it: "const char*"
  std::string name;
};

/// One place of a static tracepoint that a usdt pattern names. Inlined and unrolled ones have
/// several.
struct UsdtSite {
  std::string path;  ///< as UserFunction::path
  std::string provider, name;
  uint64_t address = 0;    ///< link address of the nop
  uint64_t semaphore = 0;  ///< link address of its 16-bit counter; 0: it has none
  std::vector<UsdtArgument> arguments;
  std::vector<UsdtField> fields;  ///< one for each argument, or none: they have no names
};

/// One parameter of a user function, from debug information.
struct UserParameter {
  std::string name;
  Type type;
  int register_index =
      -1;               ///< 0: rdi ... 5: r9, at the function's first instruction; -1: see problem
  std::string problem;  ///< why it cannot be read: "it is not passed in a register"
};

/// Where code of a source line begins.
struct SourcePlace {
  uint64_t address = 0;  ///< link address
  std::string function;
};

class World {
 public:
  virtual ~World() = default;

  /// The functions that `uprobe:target:symbol` names, in address order without duplicates. `target`
  /// is a path, a soname with or without ".so.N" ("libc", "libssl.so.3"), or a program name looked
  /// up in $PATH; with -p or -c it may be empty: the program itself. Only `*` is a wildcard, in
  /// both. Two paths of one file (usrmerge) count once.
  ///
  /// Errors:  not found    no such file, or no function matches; the message names which. Nothing
  /// else needs adding.
  ///          denied       the file cannot be read
  ///          corrupt, unsupported   not an x86-64 ELF file
  virtual Result<std::vector<UserFunction>> user_functions(std::string_view target,
                                                           std::string_view symbol) = 0;

  /// The functions that `uprobe:target:cpp:"name"` names: those whose C++ name it is, with or
  /// without its parameters. Errors: as user_functions.
  virtual Result<std::vector<CppFunction>> cpp_functions(std::string_view target,
                                                         std::string_view name) = 0;

  /// The file that `uprobe:target:0x1234` names. Errors: as user_functions.
  virtual Result<std::string> user_file(std::string_view target) = 0;

  /// The places that `usdt:target:provider:name` names, by file and address. `provider` may be
  /// empty: any. `target` as in user_functions; with -p and without a target every file that the
  /// process has mapped. Only `*` is a wildcard. Errors: as user_functions.
  virtual Result<std::vector<UsdtSite>> usdt_sites(std::string_view target,
                                                   std::string_view provider,
                                                   std::string_view name) = 0;

  /// The functions that `kprobe:[module:]symbol` names. `module` may be empty: any. Only `*` is a
  /// wildcard. A name without a wildcard that the symbol list does not show is an error only if the
  /// list can be read.
  ///
  /// Errors:  not found    no function matches
  ///          denied       the kernel's list of functions cannot be read
  virtual Result<std::vector<KernelFunction>> kernel_functions(std::string_view module,
                                                               std::string_view symbol) = 0;

  /// The address of a kernel function: kaddr().
  ///
  /// Errors:  not found    no function of that name
  ///          denied       the kernel does not tell addresses (kernel.kptr_restrict, not root)
  virtual Result<uint64_t> kernel_address(std::string_view symbol) = 0;

  /// The events that `tracepoint:category:event` names, with their fields. Only `*` is a wildcard,
  /// in both.
  ///
  /// Errors:  not found    no event matches
  ///          denied       tracefs cannot be read: needs root
  ///          unsupported  no tracefs is mounted; the message says where it was looked for
  virtual Result<std::vector<Tracepoint>> tracepoints(std::string_view category,
                                                      std::string_view event) = 0;

  /// What a function takes, in order. Errors: not found    the debug information does not have it
  ///                                        unsupported  the file has no debug information
  virtual Result<std::vector<UserParameter>> user_parameters(const UserFunction& function) {
    return fail(ErrorCode::kUnsupported, "{} has no debug information", function.path);
  }
  /// A struct ("struct pair") of a file's debug information; structs in its fields are called
  /// "struct x of PATH". Errors: as user_parameters.
  virtual Result<Structure> user_structure(std::string_view path, std::string_view) {
    return fail(ErrorCode::kUnsupported, "{} has no debug information", path);
  }
  /// The kernel describes its types (BTF).
  virtual bool has_kernel_types() { return false; }
  /// "struct sock", "union ktime". Errors: not found    the kernel has none, or only declares it
  ///                                        unsupported  this kernel describes no types
  virtual Result<Structure> kernel_structure(std::string_view name) {
    return fail(ErrorCode::kNotFound, "the kernel has no '{}'", name);
  }
  /// A typedef ("sector_t") or an enum ("enum pid_type"). Errors: as kernel_structure.
  virtual Result<Type> kernel_type(std::string_view name) {
    return fail(ErrorCode::kNotFound, "the kernel has no '{}'", name);
  }
  /// The enum ("enum pid_type", or one without a name) that has a constant of that name. Errors: as
  /// kernel_structure.
  virtual Result<Type> kernel_enumeration_of(std::string_view constant) {
    return fail(ErrorCode::kNotFound, "the kernel has no '{}'", constant);
  }
  /// A constant of one of the kernel's enums. Errors: as kernel_structure.
  virtual Result<int64_t> kernel_enumerator(std::string_view name) {
    return fail(ErrorCode::kNotFound, "the kernel has no '{}'", name);
  }
  /// The id of a cgroup by its path below the mount or from the root. Errors: not found, denied.
  virtual Result<uint64_t> cgroup_id(std::string_view path) {
    return fail(ErrorCode::kNotFound, "no cgroup {}", path);
  }
  /// A variable of a user file (`path` as in UserFunction) and how many bytes it has; and the link
  /// address of a function there. Errors: not found, unsupported (several of that name).
  struct UserVariable {
    uint64_t address = 0;     ///< link address
    uint64_t size_bytes = 0;  ///< 0: not told
  };
  virtual Result<UserVariable> user_variable(std::string_view path, std::string_view name) {
    return fail(ErrorCode::kNotFound, "no variable is called {} in {}", name, path);
  }
  virtual Result<uint64_t> user_function_address(const UserFunction& function) {
    return fail(ErrorCode::kNotFound, "no function is called {} in {}", function.symbol,
                function.path);
  }
  /// The trace has a command of its own (-c).
  virtual bool has_command() { return false; }
  /// We are in the first namespace of process ids, where the kernel counts them.
  virtual bool counts_pids_as_the_kernel() { return true; }
  /// CLOCK_REALTIME minus CLOCK_MONOTONIC, in ns, as they are now.
  virtual int64_t real_time_offset_ns() { return 0; }
  /// CLOCK_TAI minus CLOCK_MONOTONIC, in ns, as they are now.
  virtual int64_t tai_offset_ns() { return 0; }
  /// CPUs that may ever be there.
  virtual uint32_t cpu_count() { return 1; }
  /// What rawtracepoint, fentry, fexit and iter name: one Tracepoint each, its category the module
  /// ("" or "vmlinux" is the kernel proper), its fields the arguments at their places in the
  /// context (8 bytes each). Only `*` is a wildcard, in both.
  ///
  /// Errors:  not found    nothing matches
  ///          unsupported  this kernel has no type information; the message says what is missing
  virtual Result<std::vector<Tracepoint>> typed_events(TypedEvent,
                                                       std::string_view /*module*/,
                                                       std::string_view /*name*/) {
    return fail(ErrorCode::kUnsupported, "there is no type information of the kernel");
  }

  // Names near a wrong one, nearest first, at most three, for "did you mean". Empty when there is
  // nothing near.
  virtual std::vector<std::string> near_user_functions(std::string_view target,
                                                       std::string_view symbol) = 0;
  virtual std::vector<std::string> near_usdt(std::string_view target,
                                             std::string_view name) = 0;  ///< "provider:name"
  virtual std::vector<std::string> near_kernel_functions(std::string_view symbol) = 0;
  virtual std::vector<std::string> near_tracepoints(std::string_view category,
                                                    std::string_view event) = 0;  ///< "cat:event"

  /// What `uprobe:PATH@file:line[:column]` names: a place for each function that has code of that
  /// line; `column` 0: any. Errors: as user_parameters; not found says which line is next.
  virtual Result<std::vector<SourcePlace>> source_line(const std::string& path,
                                                       std::string_view /*file*/,
                                                       uint32_t /*line*/,
                                                       uint32_t /*column*/) {
    return fail(ErrorCode::kUnsupported, "{} has no debug information", path);
  }
};

}  // namespace spile::lang
