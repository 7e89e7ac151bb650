#include "lang/sema/analyze.h"

#include <algorithm>
#include <set>

#include "lang/sema/c_declarations.h"
#include "lang/sema/lower.h"
#include "lang/sema/probes.h"

namespace spile::lang {

namespace {

/// Each round widens at least one type by at least one step, so few are needed; a script whose
/// types grow without end
/// (`@x = (1, @x)`) is stopped here.
constexpr int kMaxRounds = 64;

class Analyzer {
 public:
  Analyzer(const ast::Program& program,
           World& world,
           const CompileOptions& options,
           Diagnostics& diagnostics)
      : program_(program),
        world_(world),
        options_(options),
        diagnostics_(diagnostics),
        types_(world) {}

  std::optional<typed::Program> run() {
    check_macros();
    declare_c(program_, types_, diagnostics_);
    const size_t errors_before = diagnostics_.error_count();
    ProbeTable table =
        resolve_probes(program_, world_, options_.missing_probes, options_.mode, diagnostics_);
    lacks_probes_ = diagnostics_.error_count() != errors_before;
    declare_maps();
    Diagnostics scratch;
    lower_all(table.instances, scratch);
    table.instances = split_by_layout(std::move(table.instances));
    sort_maps();
    if (table.instances.empty()) return std::nullopt;  // reported
    if (!infer(table.instances)) return std::nullopt;
    if (diagnostics_.has_errors()) return std::nullopt;
    return finish(std::move(table));
  }

 private:
  void check_macros() {
    for (const ast::Routine& routine : program_.routines) {
      for (const ast::Parameter& parameter : routine.parameters) {
        if (routine.kind == ast::Routine::Kind::kMacro && parameter.type)
          diagnostics_.error(parameter.span, "a macro's parameters have no types");
      }
    }
  }

  /// `let @a = hash(100);`
  void declare_maps() {
    for (const ast::MapDeclaration& declaration : program_.map_declarations) {
      const auto* size = ast::try_as<ast::Integer>(declaration.max_entries.get());
      const bool drops_oldest =
          declaration.type == "lruhash" || declaration.type == "percpulruhash";
      const bool is_known =
          drops_oldest || declaration.type == "hash" || declaration.type == "percpuhash";
      if (!is_known) {
        diagnostics_.error(declaration.type_span, "'{}' is no kind of map", declaration.type)
            .with_hint("hash, lruhash, percpuhash, percpulruhash");
        continue;
      }
      if (size == nullptr) {
        diagnostics_.error(declaration.span, "a map is declared with the number of its keys: {}(N)",
                           declaration.type);
        continue;
      }
      if (size->value == 0 || size->value > (1u << 24)) {
        diagnostics_.error(size->span, "a map of {} keys: 1 to {} make sense", size->value,
                           1u << 24);
        continue;
      }
      int index = maps_.find_or_add(declaration.name, declaration.name_span);
      maps_.maps[index].map.max_entries = static_cast<uint32_t>(size->value);
      maps_.maps[index].map.drops_oldest = drops_oldest;
    }
  }

  std::vector<typed::Clause> lower_all(std::vector<Instance>& instances, Diagnostics& diagnostics) {
    std::vector<typed::Clause> clauses;
    for (Instance& instance : instances)
      clauses.push_back(
          Lowering(options_, world_, types_, program_.routines, maps_, instance, diagnostics)
              .run());
    return clauses;
  }

  /// All names are known after the first round; from here on a map's number is its place in name
  /// order.
  void sort_maps() {
    std::ranges::sort(maps_.maps, {}, [](const MapState& state) { return state.map.name; });
    for (size_t i = 0; i < maps_.maps.size(); ++i)
      maps_.by_name[maps_.maps[i].map.name] = static_cast<int>(i);
  }

  bool infer(std::vector<Instance>& instances) {
    for (int round = 0; round < kMaxRounds; ++round) {
      maps_.changed = false;
      Diagnostics found;
      clauses_ = lower_all(instances, found);
      if (maps_.changed || (!found.has_errors() && settle_variables(instances))) continue;
      keep(found);
      tell_hoisted(instances);
      check_known();
      return true;
    }
    diagnostics_.error(program_.clauses.front().span, "a type of this script grows without end")
        .with_hint("a map or variable is assigned a tuple that holds itself");
    return false;
  }

  /// One clause may have been lowered for several contexts: each fault once.
  void keep(const Diagnostics& found) {
    for (const Diagnostic& one : found) {
      // What a missing probe would have put into a map is no fault of the others.
      if (lacks_probes_ && one.message.starts_with("undefined map")) continue;
      bool is_known = std::ranges::any_of(diagnostics_, [&](const Diagnostic& other) {
        return other.span == one.span && other.message == one.message;
      });
      if (!is_known) diagnostics_.add(one);
    }
  }

  void tell_hoisted(const std::vector<Instance>& instances) {
    std::set<std::string> told;
    for (const Instance& instance : instances) {
      for (const std::string& name : instance.hoisted) {
        if (!told.insert(fmt::format("{} {}", instance.clause->span.begin, name)).second) continue;
        diagnostics_
            .warning(instance.clause->attach_points.front().span,
                     "{} is used behind the block that it is first used in", name)
            .with_hint("newer bpftrace refuses this; put 'let {};' before that block", name);
      }
    }
  }

  /// `let $x;` that nothing typed was ever put into is a number. True: something changed.
  static bool settle_variables(std::vector<Instance>& instances) {
    bool changed = false;
    for (Instance& instance : instances) {
      for (typed::Variable& variable : instance.variables) {
        if (!variable.type.is_unknown()) continue;
        variable.type = Type::literal();
        changed = true;
      }
    }
    return changed;
  }

  static bool is_known(const Type& type) {
    return !type.is_unknown() &&
           (type.kind != Type::Kind::kTuple || std::ranges::all_of(type.fields, is_known));
  }

  /// `@a = @b; @b = @a;` and nothing else: no error so far, and no type either.
  void check_known() {
    if (diagnostics_.has_errors()) return;
    for (const MapState& state : maps_.maps) {
      if (!state.has_role || (is_known(state.map.value) && is_known(state.map.key))) continue;
      diagnostics_.error(state.map.span,
                         "the type of {} is not known: it only holds what other maps hold",
                         state.map.name);
    }
  }

  typed::Program finish(ProbeTable table) {
    typed::Program result;
    for (MapState& state : maps_.maps) {
      if (!state.has_role) {  // declared and never used
        state.map.key = Type::none();
        state.map.value = Type::int64();
      }
      result.maps.push_back(std::move(state.map));
    }
    result.probes = std::move(table.probes);
    result.clauses = std::move(clauses_);
    return result;
  }

  const ast::Program& program_;
  World& world_;
  const CompileOptions& options_;
  Diagnostics& diagnostics_;
  TypeTable types_;
  MapTable maps_;
  bool lacks_probes_ = false;
  std::vector<typed::Clause> clauses_;
};

}  // namespace

std::optional<typed::Program> analyze(const ast::Program& program,
                                      World& world,
                                      const CompileOptions& options,
                                      Diagnostics& diagnostics) {
  return Analyzer(program, world, options, diagnostics).run();
}

}  // namespace spile::lang
