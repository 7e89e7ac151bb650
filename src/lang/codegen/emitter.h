// One clause -> one eBPF program.
//
// Registers: r6 is the context. r7, r8, r9 hold values over calls (Held); when they are all taken,
// a stack slot does. r0 is the result of every value(); r0 to r5 survive nothing. Strings, buffers
// and tuples are written where they are wanted (into()): a stack slot, or the record in the ring
// itself.
//
// Jumps go forward, except at the end of loops: a jump back while a record is reserved is refused
// by our checker, and the user engine counts every one. So what seldom happens (a full map, an
// unreadable pointer) is stepped over.
//
// Split over emit_value.cc (numbers), emit_branch.cc (conditions), emit_memory.cc (strings,
// buffers, tuples), emit_map.cc, emit_action.cc (records), emit_stmt.cc, emit_loop.cc and
// emit_call.cc (loops).
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <vector>

#include "lang/codegen/code.h"
#include "lang/codegen/draft.h"
#include "lang/codegen/frame.h"
#include "lang/sema/typed.h"

namespace spile::lang::codegen {

/// Where a value is kept over calls.
struct Location {
  bool in_register = false;
  Reg reg = Reg::r0;
  int slot = 0;  ///< offset from r10
};

/// Memory: `offset` bytes after the stack's top, or after the address kept in `base`.
struct Place {
  std::optional<Location> base;
  int offset = 0;

  Place at(uint32_t bytes) const { return {base, offset + static_cast<int>(bytes)}; }
  /// On the stack, be it of the program or of the function that runs.
  bool is_stack() const { return !base || (base->in_register && base->reg == kHome); }

  /// In a function: the address of the program's frame.
  static constexpr Reg kHome = Reg::r6;
};

/// What the bytes after a string's NUL are.
enum class Fill : uint8_t {
  kLoose,   ///< anything: nobody looks
  kPadded,  ///< zero: it is compared, hashed or kept as a whole
};

class Emitter {
 public:
  Emitter(Draft& draft, const typed::Clause& clause)
      : draft_(draft), clause_(clause), session_(session_of(clause)) {}

  /// A loop whose bounds are not known before makes at most so many rounds; one that wants more
  /// ends and is counted.
  static constexpr int32_t kMaxOpenRounds = 65536;
  /// A loop of constant bounds and no more rounds needs no calls: verifiers walk through it.
  static constexpr uint64_t kFewRounds = 32;
  /// Our checker takes no more either.
  static constexpr size_t kMaxInsns = 32768;

  /// Errors: invalid      the clause needs more stack than there is; the message says how much
  ///         unsupported  it has more than kMaxInsns instructions
  ///         internal     a jump is too far
  Result<bpf::Program> run();
  /// Of a clause with a session: what runs at the entry of its functions. Errors: the same.
  Result<bpf::Program> run_entry();
  /// Where the functions of the program begin.
  const std::vector<uint32_t>& function_starts() const { return starts_; }

 private:
  using Expr = typed::Expr;
  using ExprPtr = typed::ExprPtr;
  using Label = Code::Label;

  /// A register or slot while this lives. Must not outlive the FrameScope it was made in.
  class Held {
   public:
    Held(Emitter& emitter, Location location) : emitter_(&emitter), location_(location) {}
    Held(Held&& other) noexcept
        : emitter_(std::exchange(other.emitter_, nullptr)), location_(other.location_) {}
    Held& operator=(Held&&) = delete;
    ~Held();
    const Location& location() const { return location_; }

   private:
    Emitter* emitter_;
    Location location_;
  };
  struct Operand {
    bool is_imm = false;
    int32_t imm = 0;
  };
  struct Loop {
    Label on_continue, on_break;
  };

  // Keeping values: emitter.cc.
  bool uses_task() const;
  Held hold(Reg from);
  void get(const Location& location, Reg dst);
  void put(const Location& location, Reg src);
  void bump(bundle::Counter counter);
  void prologue();
  void skip_end_of_iteration();
  void filter_pids();

  // What the entry of the call has noted: emit_session.cc.
  int32_t number_of(int probe) const;
  int session_key(int32_t popped);
  void take_entry();
  int entry_slot(const Expr& expr) const;

  // Numbers: emit_value.cc. Result in r0 unless said otherwise.
  void value(const Expr& expr);
  void value_in(const Expr& expr, Reg dst);
  void builtin(typed::Builtin builtin);
  void elapsed();
  void probe_number();
  static bool is_leaf(const Expr& expr);
  /// Loads a leaf into any register, clobbers no other.
  void leaf(const Expr& expr, Reg dst);
  /// left in r0; right in r1, or an immediate.
  Operand operands(const Expr& left, const Expr& right);
  void arithmetic(ast::BinaryOp op, bool is_signed, Operand right);
  void signed_division(uint8_t op, Operand right);
  void truncate(Reg reg, const Type& type);
  void truth(const Expr& expr);
  void conditional(const Expr& expr, const std::function<void(const Expr&)>& side);
  void load_memory(const Expr& expr);
  void task_value(bpf::Helper helper, std::string_view name);
  void text_length(const Expr& expr);
  /// strcontains(), strstr().
  void text_contains(const Expr& expr);
  void compare_memory(const Expr& expr);
  void load_unaligned_field(const Expr& expr);
  void modify_variable(const Expr& expr, typed::Yields yields);

  // Conditions: emit_branch.cc. Jumps to `to` if the truth of `expr` is `when`, else falls through.
  void branch(const Expr& expr, bool when, Label to);
  void branch_compare(const Expr& expr, bool when, Label to);
  void branch_text(const Expr& expr, bool when, Label to);
  void branch_differs(const Expr& expr, bool when, Label to);
  void branch_bytes(const Expr& expr, bool when, Label to);
  void branch_words(const Place& a, const Place& b, uint32_t bytes, bool when_equal, Label to);
  void branch_text_literal(const Expr& expr, const std::string& text, bool is_equal, Label to);
  void branch_text_bytes(const Place& place, const std::string& text, Label if_different);

  // Memory: emit_memory.cc.
  Reg base_of(const Place& place, Reg scratch);
  void address_of(const Place& place, Reg dst);
  void store(const Place& place, uint32_t size, Reg src);
  void store_imm(const Place& place, uint32_t size, int32_t imm);
  void zero(const Place& place, uint32_t bytes);
  /// Writes the value of `expr` to `place` in the layout of `type`. May not read what is at
  /// `place`.
  void into(const Expr& expr, const Place& place, const Type& type, Fill fill);
  void scalar_into(const Expr& expr, const Place& place);
  void aggregate_into(const Expr& expr, const Place& place, const Type& type, Fill fill);
  void text_into(const std::string& text, const Place& place, const Type& type, Fill fill);
  void string_into(
      const Expr& expr, const Place& place, const Type& type, Fill fill, uint64_t limit);
  void buffer_into(const Expr& expr, const Place& place, const Type& type, Fill fill);
  void inet_into(const Expr& expr, const Place& place);
  void object_into(const Expr& expr, const Place& place);
  void part_into(const Expr& expr, const Place& place, const Type& type);
  void context_bytes_into(const Expr& expr, const Place& place);
  void bytes_of_into(const Expr& expr, const Place& place, const Type& type);
  void copy_bytes(const Place& from, const Place& to, uint32_t bytes);
  void comm_into(const Place& place, const Type& type, Fill fill);
  /// r0 := the id of the stack. One that found no room is counted.
  void stack_id(const Type& type);
  void user_stack_into(const Expr& expr, const Place& place);
  void user_symbol_into(const Expr& expr, const Place& place);
  void process_into(const Place& place);
  void context_string_into(const Expr& expr, const Place& place, const Type& type, Fill fill);
  void map_value_into(const Expr& expr, const Place& place, const Type& type, Fill fill);
  /// r0 := min(expr + extra, limit), as unsigned.
  void clamped_length(const Expr& expr, int32_t extra, uint64_t limit);
  void copy(
      const Place& from, const Type& from_type, const Place& to, const Type& to_type, Fill fill);
  /// Where the value is as `type`: its own variable, or a new slot.
  Place materialise(const Expr& expr, const Type& type);
  enum class Memory : uint8_t { kBytes, kString };
  /// r1 = where to, r2 = size, r3 = address. A failure is counted, then `failed` runs.
  void probe_read(Memory what, const std::function<void()>& failed);
  void if_read_failed(const std::function<void()>& failed);

  // Maps: emit_map.cc.
  /// Returns its slot, which may be a variable's own: not to be written.
  Place build_key(int map, const std::vector<const Expr*>& parts);
  void map_arguments(int map, const Place& key);
  /// r0 = address of the value, or 0.
  void lookup(int map, const Place& key);
  /// r0 = address of the value; a new one is zero. Where there is no room: counted, r0 = 0, on to
  /// `done`.
  void lookup_or_insert(int map, const Place& key, Label done);
  void map_read(const Expr& expr);
  void aggregate_read(const Expr& expr);
  void aggregate_at(int map, const Place& key, uint64_t cpus);
  void add_cpu(const typed::Map& map, int total, int second);
  void aggregate_result(const typed::Map& map, int total, int second);
  void set_map(const typed::Stmt& stmt);
  void aggregate(const typed::Stmt& stmt);
  void add_number(const typed::Stmt& stmt);
  void add_to_bucket(const typed::Stmt& stmt);
  void add_extreme(bundle::MapRole role, bool is_signed);
  // emit_series.cc
  void add_to_series(const typed::Stmt& stmt);
  void claim_interval(const Location& slot, const Location& word, Label done);
  void add_to_interval(const typed::Map& map, const Location& slot, const Location& number);
  void log2_bucket(uint32_t bits);
  void linear_bucket(const typed::Map& map);
  void modify_map(const Expr& expr, typed::Yields yields);
  void modify_in_place(const Expr& expr, typed::Yields yields, const Location* operand);
  void delete_key(const Expr& expr);
  void deleted(const Expr& expr);
  void delete_histogram(const Expr& expr);

  // Records: emit_action.cc.
  void effect(const Expr& expr);
  void printf(const Expr& expr, bundle::ActionKind kind);
  void map_action(const Expr& expr, bundle::ActionKind kind);
  void exit(const Expr& expr);
  void leave_exit(const std::optional<Place>& code);
  void override_return(const Expr& expr);
  void send_signal(const Expr& expr);
  void system(const Expr& expr);
  void time(const Expr& expr);
  void join(const Expr& expr);
  void join_argument(const Location& argv,
                     const Place& record,
                     const bundle::Action& action,
                     uint32_t index,
                     Label done);
  void send(bundle::Action action,
            const std::function<void(const Place&)>& fields,
            const std::function<void()>& lost = {});

  // Statements: emit_stmt.cc.
  bool is_too_long() const { return code_.size() > kMaxInsns; }
  void block(const typed::Block& block);
  void declare(const typed::Block& block, int except = -1);
  void statements(const typed::Block& block);
  /// The statements of a kBlock, then `last` for its value, where it has one.
  void block_value(const Expr& expr, const std::function<void(const Expr&)>& last);
  void statement(const typed::Stmt& stmt);
  void set_variable(const typed::Stmt& stmt);
  void if_statement(const typed::Stmt& stmt);

  // Loops: emit_loop.cc. In programs for the user engine they jump back.
  bool calls_loops() const { return draft_.options().calls_loops && has_loops_; }
  void while_loop(const typed::Stmt& stmt);
  void for_range(const typed::Stmt& stmt);
  void for_open_range(const typed::Stmt& stmt);
  void range_body(const typed::Stmt& stmt, int counter, Label next, Label done);
  void for_map(const typed::Stmt& stmt);
  int begin_budget();
  void take_round(int budget, Label done);

  // In programs for the kernel their bodies are functions: emit_call.cc.
  bool in_function() const { return home_frame_ != nullptr; }
  void make_opaque_zero();
  void forget_changed(const typed::Stmt& loop);
  int function(const typed::Stmt& loop, Reg home, const std::function<void()>& body);
  void call(bpf::Helper helper, int function);
  void refuse_round(Reg round);
  void call_while(const typed::Stmt& stmt);
  void call_range(const typed::Stmt& stmt);
  void call_for_map(const typed::Stmt& stmt);
  Result<bpf::Program> put_together();

  // What outlives a function's frame: variables, and what all functions share.
  Frame& home() { return in_function() ? *home_frame_ : frame_; }
  Place home_place(int slot) const;
  Place variable(int index) const { return home_place(slots_[static_cast<size_t>(index)]); }
  /// The program's context, in r6 or in `scratch`.
  Reg context(Reg scratch);

  const typed::Map& script_map(int map) const {
    return draft_.program().maps[static_cast<size_t>(map)];
  }
  static std::vector<const Expr*> pointers(const std::vector<ExprPtr>& exprs, size_t from = 0);

  Draft& draft_;
  const typed::Clause& clause_;
  Code code_;
  Frame frame_;
  std::array<bool, 3> taken_{};  ///< r7, r8, r9
  std::vector<int> slots_;       ///< of each variable
  std::vector<Loop> loops_;
  std::vector<std::pair<int, Label>> leaves_;  ///< ends of blocks that are left early, by result
  std::optional<int> result_slot_;             ///< of a test
  Label leave_{};
  int counter_key_ = 0;
  std::optional<Session> session_;
  int entry_slots_ = 0;        ///< the arguments, then the duration
  bool reads_kernel_ = false;  ///< addresses may be the kernel's
  bool has_loops_ = false;     ///< more than kFewRounds
  // In the program's frame:
  int leaving_ = 0;              ///< not 0: a function has met exit() or return
  int opaque_ = 0;               ///< 0, which verifiers do not know
  int context_slot_ = 0;         ///< the context, for functions
  Frame* home_frame_ = nullptr;  ///< in a function: the program's
  uint32_t below_ = 0;           ///< most stack that the functions called from here take
  std::vector<bpf::Program> functions_;
  std::vector<uint32_t> starts_;
  std::optional<Error> fault_;  ///< of a function
};

}  // namespace spile::lang::codegen
