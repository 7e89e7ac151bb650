// One clause of the AST -> its typed form, with the types found so far.
//
// Split over lower_expr.cc (values), lower_operator.cc (operators, casts), lower_call.cc
// (functions), lower_check.cc, lower_struct.cc, lower_object.cc, lower_convert.cc, lower_block.cc
// (blocks and macros), lower_stack.cc (stacks, symbols), lower_map.cc, lower_loop.cc and
// lower_stmt.cc (statements, scopes). Every method returns a node whatever happens: after an error
// it is of unknown type, from which nothing further is reported.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "lang/sema/catalog.h"
#include "lang/sema/options.h"
#include "lang/sema/probes.h"
#include "lang/sema/type_table.h"
#include "lang/sema/typed.h"
#include "lang/sema/world.h"
#include "lang/syntax/ast.h"
#include "lang/syntax/diagnostic.h"

namespace spile::lang {

/// What all clauses know of a map so far.
struct MapState {
  typed::Map map;
  bool has_role = false;  ///< something is put into it somewhere
  bool has_bits = false;  ///< hist() has said how fine its buckets are
};

/// The maps of the script; every change of a type asks for another round.
struct MapTable {
  std::vector<MapState> maps;
  std::map<std::string, int> by_name;
  bool changed = false;

  int find_or_add(const std::string& name, Span span);
};

/// An empty one.
typed::Stmt statement(typed::StmtKind kind, Span span);

class Lowering {
 public:
  Lowering(const CompileOptions& options,
           World& world,
           TypeTable& types,
           const std::vector<ast::Routine>& routines,
           MapTable& maps,
           Instance& instance,
           Diagnostics& diagnostics)
      : routines_(routines),
        options_(options),
        world_(world),
        types_(types),
        maps_(maps),
        instance_(instance),
        diagnostics_(diagnostics) {}

  typed::Clause run();

 private:
  using ExprPtr = typed::ExprPtr;
  /// What a positional parameter becomes where both would do.
  enum class Want : uint8_t { kAny, kString };

  // Nodes.
  static ExprPtr make(typed::ExprKind kind, Type type, Span span);
  static ExprPtr number(uint64_t value, Type type, Span span);
  static ExprPtr text(std::string value, Span span);
  static ExprPtr unknown(Span span) { return number(0, Type{}, span); }
  static ExprPtr nothing(typed::ExprKind kind, Span span) { return make(kind, Type::none(), span); }

  // Values: lower_expr.cc, lower_operator.cc.
  ExprPtr lower(const ast::Expr& expr, Want want = Want::kAny);
  ExprPtr lower_number(const ast::Expr& expr, std::string_view what);
  ExprPtr lower_integer(const ast::Integer& expr);
  ExprPtr lower_positional(const ast::Positional& expr, Want want);
  ExprPtr lower_identifier(const ast::Identifier& expr);
  ExprPtr lower_name(const std::string& name, Span span);
  ExprPtr lower_argument_register(uint32_t index, Span span);
  ExprPtr lower_usdt_argument(uint32_t index, Span span);
  ExprPtr read_usdt_argument(uint32_t index, Span span);
  ExprPtr lower_usdt_field(const ast::Field& expr);
  Type type_of_usdt_field(const UsdtField& field, const UsdtArgument& argument);
  ExprPtr lower_retval(Span span);
  ExprPtr lower_duration(Span span);
  ExprPtr lower_variable(const ast::Variable& expr);
  ExprPtr lower_map_read(const ast::Map& expr);
  bool lower_constant(const std::string& name, Span span, ExprPtr& value);
  ExprPtr lower_define(const std::string& name, const ast::Expr& body);
  ExprPtr lower_event_field(const ast::Field& expr);
  Type array_of_event(const EventField& field);
  ExprPtr lower_function_parameter(const ast::Field& expr);
  std::optional<UserParameter> find_parameter(const UserFunction& function, const ast::Field& expr);
  ExprPtr lower_tuple_field(const ast::TupleField& expr);
  ExprPtr element_of_tuple(ExprPtr tuple, uint64_t index, Span span);
  ExprPtr lower_record(const ast::Record& expr);
  ExprPtr tuple_of(const std::vector<const ast::Expr*>& given,
                   std::vector<std::string> names,
                   Span span);
  ExprPtr lower_unary(const ast::Unary& expr);
  ExprPtr lower_inc_dec(const ast::IncDec& expr);
  ExprPtr lower_binary(const ast::Binary& expr);
  ExprPtr lower_logical(const ast::Binary& expr);
  ExprPtr lower_ternary(const ast::Ternary& expr);
  ExprPtr lower_cast(const ast::Cast& expr);
  ExprPtr lower_tuple(const ast::Tuple& expr);
  ExprPtr arithmetic(ast::BinaryOp op, ExprPtr left, ExprPtr right, Span span);
  uint64_t pointee_bytes(const Type& pointer);
  ExprPtr scaled(ast::BinaryOp op, ExprPtr value, const Type& pointer, Span span);
  ExprPtr pointer_arithmetic(ast::BinaryOp op, ExprPtr left, ExprPtr right, Span span);
  ExprPtr compare_bytes(ast::BinaryOp op, ExprPtr left, ExprPtr right, Span span);
  ExprPtr compare(ast::BinaryOp op, ExprPtr left, ExprPtr right, Span span);
  ExprPtr truncate(ExprPtr value, const Type& type, Span span);
  bool check_operands(ast::BinaryOp op, const typed::Expr& right, Span span);
  bool resolve_type(const ast::TypeName& name, Type& type);
  bool resolve_base(const ast::TypeName& name, Type& type);
  bool expect_number(const typed::Expr& expr, std::string_view what);
  bool is_args(const ast::Expr& expr) const;
  // lower_typed.cc
  std::string name_of(const Tracepoint& event) const;
  ExprPtr context_word(uint32_t offset, Type type, Span span);
  ExprPtr lower_typed_field(const EventField& field, Span span);
  ExprPtr lower_typed_argument(uint32_t index, Span span);
  ExprPtr lower_typed_result(Span span);

  // Structs, arrays, memory: lower_struct.cc. A struct or array is known by its address: an
  // expression of that type gives it.
  ExprPtr lower_field(const ast::Field& expr);
  ExprPtr member(ExprPtr base, const std::string& name, Span name_span, Span span);
  ExprPtr member(ExprPtr base, const std::string& name, Span span) {
    return member(std::move(base), name, span, span);
  }
  ExprPtr read_at(ExprPtr address, uint32_t offset, const Type& type, Span span);
  ExprPtr read_bits(ExprPtr address, const TypeTable::Found& found, Span span);
  ExprPtr offset_by(ExprPtr address, uint32_t bytes, Span span);
  ExprPtr lower_index(const ast::Index& expr);
  ExprPtr lower_event_element(const ast::Index& expr);
  ExprPtr lower_element(ExprPtr array, ExprPtr index, Span span);
  ExprPtr lower_deref(ExprPtr address, Span span);
  ExprPtr lower_sizeof(const ast::Sizeof& expr);
  ExprPtr lower_offsetof(const ast::Offsetof& expr);
  std::optional<uint32_t> offset_of(Type type,
                                    const std::vector<std::string>& path,
                                    std::string_view what,
                                    Span span);
  ExprPtr lower_container_of(const ast::Call& call);

  // Copies of structs and arrays: lower_object.cc.
  /// Where `expr` stays where it is, it becomes a copy, which can be printed and kept. False:
  /// reported.
  bool as_value(ExprPtr& expr);
  ExprPtr part_of(ExprPtr object, uint32_t offset, const Type& type, Span span);
  ExprPtr lower_address_of(const ast::Unary& expr);
  // Casts between numbers, texts and arrays: lower_object.cc.
  ExprPtr lower_cast_to_open_array(const ast::Cast& expr);
  ExprPtr cast_to_array(ExprPtr value, const Type& type, std::string_view what, Span span);
  ExprPtr cast_to_text(ExprPtr value, const Type& type, std::string_view what, Span span);
  ExprPtr bytes_of(ExprPtr value, Type type, Span span);
  /// An array of 1, 2, 4 or 8 bytes as the number that they are. Null: it is none, and `value` is
  /// as it was.
  ExprPtr number_of_bytes(ExprPtr& value, Span span);
  ExprPtr lower_pton(const ast::Call& call);

  // Functions: lower_call.cc.
  ExprPtr lower_call(const ast::Call& call);
  ExprPtr lower_function(const ast::Call& call, Function function);
  ExprPtr lower_printf(const ast::Call& call, typed::ExprKind kind);
  ExprPtr lower_print(const ast::Call& call);
  ExprPtr lower_print_map(const ast::Call& call, const ast::Map& map);
  ExprPtr lower_whole_map(const ast::Call& call, typed::ExprKind kind);
  ExprPtr lower_delete(const ast::Call& call);
  ExprPtr lower_has_key(const ast::Call& call);
  ExprPtr lower_exit(const ast::Call& call);
  ExprPtr lower_time(const ast::Call& call);
  ExprPtr lower_join(const ast::Call& call);
  ExprPtr lower_str(const ast::Call& call);
  ExprPtr lower_buf(const ast::Call& call);

  // What is checked or told while the script is read or runs: lower_check.cc.
  ExprPtr lower_message(const ast::Call& call, typed::ExprKind kind);
  static ExprPtr nothing_at_all(Span span);
  ExprPtr lower_assert(const ast::Call& call);
  ExprPtr lower_static_assert(const ast::Call& call);
  ExprPtr lower_fail(const ast::Call& call);
  ExprPtr lower_find(const ast::Call& call);
  ExprPtr lower_type_question(const ast::Call& call);
  ExprPtr lower_typeinfo(const ast::Call& call);

  // Values that are converted or printed in their own way: lower_convert.cc.
  ExprPtr lower_ntop(const ast::Call& call);
  ExprPtr lower_byte_swap(const ast::Call& call);
  ExprPtr lower_strftime(const ast::Call& call);
  ExprPtr lower_macaddr(const ast::Call& call);
  ExprPtr lower_strlen(const ast::Call& call);
  ExprPtr lower_strncmp(const ast::Call& call);
  /// strcontains(), strstr().
  ExprPtr lower_strcontains(const ast::Call& call, typed::ExprKind kind);
  ExprPtr lower_cgroup_id(const ast::Call& call);
  ExprPtr lower_cgroup_path(const ast::Call& call);
  ExprPtr lower_child_pid(Span span);
  ExprPtr lower_signal(const ast::Call& call);
  ExprPtr lower_getopt(const ast::Call& call);
  ExprPtr convert(ExprPtr value, Type type, Span span);
  // Texts and memory: lower_text.cc.
  ExprPtr lower_string(const ast::Expr& expr, std::string_view what);
  ExprPtr lower_strcap(const ast::Call& call);
  ExprPtr lower_memcmp(const ast::Call& call);
  /// Names that stand for a field of the current task, or for something known before the script
  /// runs. Null: not one of them.
  ExprPtr lower_derived(const std::string& name, Span span);
  ExprPtr current_task(Span span);

  // Stacks, symbols, registers: lower_stack.cc.
  ExprPtr lower_stack(const ast::Call& call, Type::Kind kind);
  ExprPtr stack(Type::Kind kind, bundle::StackMode mode, uint32_t frames, Span span);
  bool stack_mode(const ast::Expr& expr, bundle::StackMode& mode);
  ExprPtr lower_symbol(const ast::Call& call, Type::Kind kind);
  ExprPtr lower_reg(const ast::Call& call);
  ExprPtr lower_kernel_address(const ast::Call& call);
  // Addresses of names, clocks: lower_address.cc.
  ExprPtr lower_per_cpu_address(const ast::Call& call);
  ExprPtr lower_user_address(const ast::Call& call);
  std::optional<uint64_t> probed_address(std::string& path, Span span);
  ExprPtr lower_kernel_function_exists(const ast::Call& call);
  ExprPtr lower_is_error(const ast::Call& call);
  /// nsecs(tai), pid(init) and the like, ppid(task). Null: it is none of them.
  ExprPtr lower_named_variant(const ast::Call& call);
  ExprPtr lower_override(const ast::Call& call);
  bool literal_text(const ast::Expr& expr, std::string_view what, std::string& text);
  bool constant(const ast::Expr& expr, std::string_view what, int64_t& value);
  const ast::Map* map_argument(const ast::Call& call, size_t index);

  // Maps: lower_map.cc.
  int map_named(const ast::Map& map);
  /// Lowers the key into `parts` and makes it part of the map's key type.
  bool lower_key(const ast::Map& map, int index, std::vector<ExprPtr>& parts);
  bool add_key(int index, std::vector<ExprPtr> given, Span span, std::vector<ExprPtr>& parts);
  bool join_key(int index, const Type& key, Span span);
  bool set_role(int index, bundle::MapRole role, Span span);
  void join_value(int index, const Type& type, Span span);
  /// Refuses the use of aggregations as values. False: the map's type is not known (yet).
  bool check_readable(int index, Span span);
  /// Has one number to give.
  static bool is_readable(bundle::MapRole role);
  /// What an aggregation gives in an expression.
  static Type type_when_read(const typed::Map& map);
  ExprPtr modify_map(
      const ast::Map& target, ast::BinaryOp op, ExprPtr operand, typed::Yields yields, Span span);

  // Blocks as values, macros: lower_block.cc.
  using Scopes = std::vector<std::map<std::string, int>>;
  /// A macro while its body is lowered: what its parameters stand for, and where that was written.
  struct Expansion {
    const ast::Routine* macro = nullptr;
    Expansion* outer = nullptr;
    const Scopes* callers_scopes = nullptr;
    std::map<std::string, const ast::Expr*> expressions;
    std::map<std::string, std::string> maps;
    int depth = 0;
    // Of a function that is left before its end:
    typed::Block* block = nullptr;
    int result = -1;  ///< the variable that holds its value
  };
  ExprPtr lower_block_expr(const ast::Block& block, Span span);
  ExprPtr lower_if_expr(const ast::If& stmt, Span span);
  ExprPtr choose(ExprPtr condition, ExprPtr then_value, ExprPtr else_value, Span span);
  const ast::Routine* find_macro(const std::string& name,
                                 const std::vector<ast::ExprPtr>& arguments) const;
  bool is_macro(const std::string& name) const;
  /// Null: there is no macro of that name.
  ExprPtr lower_macro(const std::string& name,
                      const std::vector<ast::ExprPtr>& arguments,
                      Span span);
  ExprPtr expand(const ast::Routine& macro, const std::vector<ast::ExprPtr>& arguments, Span span);
  ExprPtr lower_parameter(const ast::Expr& expr);
  std::string resolve_map_name(const std::string& name) const;

  // Statements: lower_stmt.cc.
  typed::Block lower_block(const ast::Block& block);
  void lower_statements(const ast::Block& block, typed::Block& into);
  void lower_statement(const ast::Stmt& stmt, typed::Block& into);
  void lower_assign(const ast::Assign& assign, typed::Block& into);
  void lower_assign_variable(const ast::Assign& assign,
                             const ast::Variable& target,
                             typed::Block& into);
  void lower_assign_map(const ast::Assign& assign, const ast::Map& target, typed::Block& into);
  bool lower_aggregate(const ast::Assign& assign, const ast::Map& target, typed::Block& into);
  void lower_lhist(const ast::Call& call, typed::Map& map);
  void lower_series(const ast::Call& call, typed::Map& map);
  void lower_let(const ast::Let& let, typed::Block& into);
  void check_import(const ast::ImportStmt& stmt);
  void lower_if(const ast::If& stmt, typed::Block& into);
  std::optional<bool> decided(const typed::Expr& condition);
  typed::Block lower_side(const ast::Block& block, bool may_run);
  bool check_comptime(const typed::Expr& value);
  ExprPtr lower_condition(const ast::Expr& expr);
  void refuse(Span span, std::string_view what) {
    diagnostics_.error(span, "{} is not built yet", what);
  }

  // Loops: lower_loop.cc.
  bool enter_loop(Span span);
  void leave_loop();
  void lower_while(const ast::While& stmt, typed::Block& into);
  void lower_for_range(const ast::ForRange& stmt, typed::Block& into);
  bool begin_walk(const ast::Map& map, typed::Stmt& loop);
  void lower_for_map(const ast::ForMap& stmt, typed::Block& into);
  ExprPtr lower_len(const ast::Call& call);
  void lower_unroll(const ast::Unroll& stmt, typed::Block& into);
  void lower_jump(const ast::Stmt& stmt, typed::Block& into);
  void lower_return(const ast::Return& leave, typed::Block& into);
  void leave_function(const ast::Return& leave, typed::Block& into);
  ExprPtr lower_result(const ast::Expr& expr);

  // Variables.
  int find_variable(const std::string& name) const;  ///< -1: none in scope
  int declare_variable(const std::string& name, typed::Block& block);
  void assign_variable(int variable, ExprPtr value, Span span, typed::Block& into);
  void join_variable(int variable, const Type& type, Span span);
  void report_undefined(const std::string& name, Span span);
  bool hoist(const std::string& name, Span span);
  void declare_hoisted(typed::Block& block);

  /// Memory in the kernel's sense: 512 bytes of stack make larger values senseless.
  static constexpr uint32_t kMaxTupleBytes = 4096;
  static constexpr int64_t kMaxRounds = 65536;
  static constexpr int kMaxLoopDepth = 6;
  /// As deep as the kernel looks by itself (kernel.perf_event_max_stack).
  static constexpr uint32_t kMaxStackFrames = 127;

  const std::vector<ast::Routine>& routines_;
  const CompileOptions& options_;
  World& world_;
  TypeTable& types_;
  MapTable& maps_;
  Instance& instance_;
  Diagnostics& diagnostics_;
  std::vector<std::map<std::string, int>> scopes_;
  Expansion* expansion_ = nullptr;        ///< null: not inside of a macro
  std::set<std::string> seen_variables_;  ///< also those out of scope
  typed::Block* declaring_ = nullptr;     ///< the innermost block
  size_t next_variable_ = 0;
  int loop_depth_ = 0;
  int all_loops_ = 0;                ///< around this place, also outside of a macro
  bool never_runs_ = false;          ///< the condition around this place is never true
  std::set<std::string> expanding_;  ///< #defines under way
};

}  // namespace spile::lang
