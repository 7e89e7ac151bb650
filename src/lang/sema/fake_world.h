// A machine made of names, for tests.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "lang/sema/world.h"

namespace spile::lang {

class FakeWorld : public World {
 public:
  std::vector<UserFunction> user = {{"/usr/lib/libc.so.6", "fopen"},
                                    {"/usr/lib/libc.so.6", "fclose"},
                                    {"/usr/lib/libc.so.6", "malloc"},
                                    {"/usr/bin/redis-server", "main"}};
  std::vector<KernelFunction> kernel = {
      {"do_sys_openat2", ""}, {"vfs_read", ""}, {"vfs_write", ""}, {"nf_hook", "nf"}};
  std::vector<UsdtSite> usdt = default_usdt();
  std::vector<Tracepoint> events = default_events();
  std::vector<std::pair<TypedEvent, Tracepoint>> typed = default_typed();

  Result<std::vector<UserFunction>> user_functions(std::string_view target,
                                                   std::string_view symbol) override {
    std::vector<UserFunction> found;
    bool has_file = false;
    for (const UserFunction& function : user) {
      if (!names_file(function.path, target)) continue;
      has_file = true;
      if (matches(symbol, function.symbol)) found.push_back(function);
    }
    if (!has_file) return fail(ErrorCode::kNotFound, "no file '{}'", target);
    if (found.empty()) return fail(ErrorCode::kNotFound, "{} has no function '{}'", target, symbol);
    return found;
  }
  Result<std::vector<CppFunction>> cpp_functions(std::string_view target,
                                                 std::string_view name) override {
    if (!names_file("/usr/bin/redis-server", target) || !matches(name, "ns::f"))
      return fail(ErrorCode::kNotFound, "{}: no C++ function '{}'", target, name);
    return std::vector{CppFunction{{"/usr/bin/redis-server", "_ZN2ns1fEi"}, "ns::f(int)"},
                       CppFunction{{"/usr/bin/redis-server", "_ZN2ns1fEl"}, "ns::f(long)"}};
  }
  Result<std::string> user_file(std::string_view target) override {
    for (const UserFunction& function : user) {
      if (names_file(function.path, target)) return function.path;
    }
    return fail(ErrorCode::kNotFound, "no file '{}'", target);
  }
  Result<std::vector<UsdtSite>> usdt_sites(std::string_view target,
                                           std::string_view provider,
                                           std::string_view name) override {
    std::vector<UsdtSite> found;
    for (const UsdtSite& site : usdt) {
      if (names_file(site.path, target) && (provider.empty() || matches(provider, site.provider)) &&
          matches(name, site.name))
        found.push_back(site);
    }
    if (found.empty())
      return fail(ErrorCode::kNotFound, "{} has no static tracepoint '{}'", target, name);
    return found;
  }
  Result<std::vector<KernelFunction>> kernel_functions(std::string_view module,
                                                       std::string_view symbol) override {
    std::vector<KernelFunction> found;
    for (const KernelFunction& function : kernel) {
      if ((module.empty() || matches(module, function.module)) && matches(symbol, function.symbol))
        found.push_back(function);
    }
    if (found.empty()) return fail(ErrorCode::kNotFound, "the kernel has no function '{}'", symbol);
    return found;
  }
  Result<uint64_t> kernel_address(std::string_view symbol) override {
    if (symbol == "vfs_read") return 0xffffffff81000010;
    if (symbol == "runqueues") return 0x32580;
    if (symbol == "__per_cpu_offset") return 0xffffffff82000000;
    return fail(ErrorCode::kNotFound, "the kernel has no function '{}'", symbol);
  }
  Result<std::vector<Tracepoint>> tracepoints(std::string_view category,
                                              std::string_view event) override {
    std::vector<Tracepoint> found;
    for (const Tracepoint& one : events) {
      if (matches(category, one.category) && matches(event, one.event)) found.push_back(one);
    }
    if (found.empty()) return fail(ErrorCode::kNotFound, "no tracepoint '{}:{}'", category, event);
    return found;
  }
  Result<std::vector<UserParameter>> user_parameters(const UserFunction& function) override {
    const Type name = Type::pointer_to(Type::integer(1, true));
    const Type file = Type::pointer_to(Type::structure("struct file of " + function.path));
    if (function.symbol == "fopen")
      return std::vector<UserParameter>{{"name", name, 0, ""}, {"mode", name, 1, ""}};
    if (function.symbol == "fclose")
      return std::vector<UserParameter>{{"stream", file, 0, ""},
                                        {"mode", name, 2, ""},
                                        {"x", {}, -1, "it is not passed in a register"}};
    return fail(ErrorCode::kUnsupported, "{} has no debug information", function.path);
  }
  Result<Structure> user_structure(std::string_view path, std::string_view name) override {
    if (name != "struct file") return fail(ErrorCode::kNotFound, "no {}", name);
    return Structure{fmt::format("{} of {}", name, path),
                     16,
                     {{"fd", Type::integer(4, true), 0}, {"name", Type::string(8), 4}}};
  }
  bool has_types = true;
  std::vector<Structure> structures = default_structures();

  bool has_kernel_types() override { return has_types; }
  Result<Structure> kernel_structure(std::string_view name) override {
    for (const Structure& one : structures) {
      if (has_types && one.name == name) return one;
    }
    return fail(ErrorCode::kNotFound, "the kernel has no '{}'", name);
  }
  Result<Type> kernel_type(std::string_view name) override {
    if (has_types && name == "sector_t") return Type::uint64();
    return fail(ErrorCode::kNotFound, "the kernel has no '{}'", name);
  }
  Result<std::vector<SourcePlace>> source_line(const std::string& path,
                                               std::string_view file,
                                               uint32_t line,
                                               uint32_t column) override {
    if (file != "lines.c") return World::source_line(path, file, line, column);
    if (line == 12) return std::vector<SourcePlace>{{0x1000, "first"}, {0x2000, "second"}};
    return fail(ErrorCode::kNotFound, "no code begins at line {} of {}", line, file);
  }
  Result<int64_t> kernel_enumerator(std::string_view name) override {
    if (has_types && name == "TCP_CLOSE") return 7;
    return fail(ErrorCode::kNotFound, "the kernel has no '{}'", name);
  }
  Result<uint64_t> cgroup_id(std::string_view path) override {
    if (path == "/sys/fs/cgroup/user.slice") return 77;
    return fail(ErrorCode::kNotFound, "no cgroup {}", path);
  }
  uint32_t cpu_count() override { return 4; }
  Result<UserVariable> user_variable(std::string_view path, std::string_view name) override {
    if (name == "state") return UserVariable{0x4000, 4};
    return fail(ErrorCode::kNotFound, "no variable is called {} in {}", name, path);
  }
  Result<uint64_t> user_function_address(const UserFunction& function) override {
    if (function.symbol == "fopen") return 0x1000;
    return fail(ErrorCode::kNotFound, "no function is called {} in {}", function.symbol,
                function.path);
  }
  /// 2500 days: interval number 2 of 1000 days.
  int64_t real_time_offset_ns() override { return 2500 * int64_t{86'400'000'000'000}; }
  int64_t tai_offset_ns() override { return 37'000'000'000; }
  Result<std::vector<Tracepoint>> typed_events(TypedEvent kind,
                                               std::string_view module,
                                               std::string_view name) override {
    std::vector<Tracepoint> found;
    for (const auto& [its_kind, one] : typed) {
      if (its_kind == kind && (module.empty() || matches(module, one.category)) &&
          matches(name, one.event))
        found.push_back(one);
    }
    if (found.empty()) return fail(ErrorCode::kNotFound, "nothing is called '{}'", name);
    return found;
  }
  std::vector<std::string> near_user_functions(std::string_view, std::string_view symbol) override {
    return symbol == "fopne" ? std::vector<std::string>{"fopen"} : std::vector<std::string>{};
  }
  std::vector<std::string> near_usdt(std::string_view, std::string_view name) override {
    return name == "query_strat" ? std::vector<std::string>{"db:query_start"}
                                 : std::vector<std::string>{};
  }
  std::vector<std::string> near_kernel_functions(std::string_view symbol) override {
    return symbol == "vfs_raed" ? std::vector<std::string>{"vfs_read", "vfs_write"}
                                : std::vector<std::string>{};
  }
  std::vector<std::string> near_tracepoints(std::string_view, std::string_view) override {
    return {"sched:sched_switch"};
  }

 private:
  using Shape = EventField::Shape;
  using Place = UsdtArgument::Place;

  static std::vector<Structure> default_structures() {
    const Type task = Type::pointer_to(Type::structure("struct task_struct"));
    return {
        {"struct task_struct",
         96,
         {{"pid", Type::integer(4, true), 0},
          {"tgid", Type::integer(4, true), 4},
          {"real_parent", task, 8},
          {"group_leader", task, 16},
          {"comm", Type::string(16), 24},
          {"flag", Type::integer(4, false), 40, 2, 3},
          {"level", Type::integer(4, true), 40, 5, 5},
          {"se", Type::structure("struct entity"), 48},
          {"", Type::structure("union <7>"), 64},
          {"words", Type::array_of(Type::integer(4, false), 4), 72},
          {"next", Type::pointer_to(Type::structure("struct opaque")), 88}}},
        {"struct entity", 16, {{"load", Type::uint64(), 0}, {"runs", Type::integer(2, false), 8}}},
        {"union <7>", 8, {{"as_word", Type::uint64(), 0}, {"as_byte", Type::integer(1, false), 0}}},
    };
  }

  /// query_start twice, with its arguments in other places; one that cannot be read in query_done.
  static std::vector<UsdtSite> default_usdt() {
    namespace regs = bpf::x86_64_regs;
    const UsdtArgument edi{"-4@%edi", Place::kRegister, 4, true, regs::kDi};
    const UsdtArgument stack{.text = "-4@-20(%rbp)",
                             .place = Place::kMemory,
                             .size = 4,
                             .is_signed = true,
                             .base = regs::kBp,
                             .number = -20};
    const UsdtArgument table{.text = "1@(%rax,%rcx,8)",
                             .place = Place::kMemory,
                             .size = 1,
                             .base = regs::kAx,
                             .index = regs::kCx,
                             .scale = 8};
    const UsdtArgument symbol{
        .text = "8@g(%rip)", .place = Place::kMemory, .from_site = true, .number = 0x2000};
    const UsdtArgument five{.text = "-4@$5", .size = 4, .is_signed = true, .number = 5};
    const UsdtArgument high{"1@%ah", Place::kRegister, 1, false, regs::kAx + 1};
    const UsdtArgument real{
        .text = "8f@%xmm0",
        .place = Place::kUnreadable,
        .problem = "'8f@%xmm0': a floating-point number, which is not built yet"};
    const std::string path = "/usr/bin/redis-server";
    return {
        {path, "db", "query_start", 0x1000, 0x4000, {edi, five}},
        {path, "db", "query_start", 0x1100, 0x4000, {stack, five, high}},
        {path, "db", "query_done", 0x1200, 0, {table, symbol, real}},
        {path,
         "db",
         "reply",
         0x1300,
         0,
         {edi, symbol, table},
         {{"int", "id"}, {"const char*", "path"}, {"bool", "ok"}}},
        {path, "db", "reply_late", 0x1400, 0, {symbol, stack}, {{"char *", "path"}, {"int", "id"}}},
        {path, "db", "reply_last", 0x1500, 0, {five, edi}, {{"long", "path"}, {"int", "id"}}}};
  }

  static std::vector<EventField> common() {
    return {{"common_type", "unsigned short", 0, 2, false, Shape::kInt},
            {"common_pid", "int", 4, 4, true, Shape::kInt}};
  }
  static Tracepoint event(std::string category,
                          std::string name,
                          uint32_t size,
                          std::vector<EventField> fields) {
    std::vector<EventField> all = common();
    all.insert(all.end(), fields.begin(), fields.end());
    return {std::move(category), std::move(name), size, std::move(all)};
  }
  static std::vector<Tracepoint> default_events() {
    return {
        event("sched", "sched_switch", 64,
              {{"prev_comm", "char[16]", 8, 16, false, Shape::kCharArray},
               {"prev_pid", "pid_t", 24, 4, true, Shape::kInt},
               {"prev_prio", "int", 28, 4, true, Shape::kInt},
               {"prev_state", "long", 32, 8, true, Shape::kInt},
               {"next_comm", "char[16]", 40, 16, false, Shape::kCharArray},
               {"next_pid", "pid_t", 56, 4, true, Shape::kInt}}),
        event("sched", "sched_process_exec", 20,
              {{"filename", "__data_loc char[]", 8, 4, false, Shape::kDataLocStr},
               {"pid", "pid_t", 12, 4, true, Shape::kInt},
               {"old_pid", "pid_t", 16, 4, true, Shape::kInt}}),
        event("syscalls", "sys_enter_openat", 48,
              {{"__syscall_nr", "int", 8, 4, true, Shape::kInt},
               {"dfd", "int", 16, 8, false, Shape::kInt},
               {"filename", "const char *", 24, 8, false, Shape::kPointer},
               {"flags", "int", 32, 8, false, Shape::kInt}}),
        event("syscalls", "sys_enter_read", 40,
              {{"__syscall_nr", "int", 8, 4, true, Shape::kInt},
               {"fd", "unsigned int", 16, 8, false, Shape::kInt},
               {"buf", "char *", 24, 8, false, Shape::kPointer},
               {"count", "size_t", 32, 8, false, Shape::kInt}}),
        event("odd", "packed", 24,
              {{"flag", "u8", 8, 1, false, Shape::kInt},
               {"small", "s8", 9, 1, true, Shape::kInt},
               {"unaligned", "u32", 10, 4, false, Shape::kInt},
               {"list", "u32[2]", 16, 8, false, Shape::kIntArray}}),
    };
  }

  /// Words of 8 bytes each: an argument narrower than its word, pointers, a struct by value.
  static std::vector<std::pair<TypedEvent, Tracepoint>> default_typed() {
    const EventField preempt{"preempt", "bool", 0, 1, false, Shape::kInt};
    const EventField prev{"prev", "struct task_struct *", 8, 8, false, Shape::kPointer};
    const EventField fd{"fd", "int", 0, 4, true, Shape::kInt};
    const EventField name{"name", "const char *", 8, 8, false, Shape::kPointer};
    const EventField pair{"pair", "struct pair", 16, 16, false, Shape::kOther};
    const EventField result{"retval", "long int", 32, 8, true, Shape::kInt};
    const EventField task{"task", "struct task_struct *", 8, 8, false, Shape::kPointer};
    return {{TypedEvent::kRawTracepoint, {"", "sched_switch", 16, {preempt, prev}}},
            {TypedEvent::kFunctionEntry, {"", "vfs_open", 32, {fd, name, pair}}},
            {TypedEvent::kFunctionExit, {"", "vfs_open", 40, {fd, name, pair, result}}},
            {TypedEvent::kFunctionExit, {"", "nothing_back", 8, {fd}}},
            {TypedEvent::kIterator, {"", "task", 16, {task}}}};
  }

  static bool names_file(std::string_view path, std::string_view target) {
    if (matches(target, path)) return true;
    std::string_view base = path.substr(path.rfind('/') + 1);
    return base == target || base.substr(0, base.find('.')) == target;
  }
  static bool matches(std::string_view pattern, std::string_view name) {
    if (pattern.empty()) return name.empty();
    if (pattern[0] == '*') {
      for (size_t skip = 0; skip <= name.size(); ++skip) {
        if (matches(pattern.substr(1), name.substr(skip))) return true;
      }
      return false;
    }
    return !name.empty() && pattern[0] == name[0] && matches(pattern.substr(1), name.substr(1));
  }
};

}  // namespace spile::lang
