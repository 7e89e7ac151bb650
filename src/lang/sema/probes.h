// Attach points as written -> attach points as they are on this machine, grouped by the program
// they can share.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "lang/sema/options.h"
#include "lang/sema/typed.h"
#include "lang/sema/world.h"
#include "lang/syntax/ast.h"
#include "lang/syntax/diagnostic.h"

namespace spile::lang {

/// One clause for one sort of context: what becomes one program.
struct Instance {
  const ast::Clause* clause = nullptr;
  typed::Context context;
  std::vector<int> probes;              ///< indices into ProbeTable::probes
  std::vector<Tracepoint> events;       ///< of each probe; empty where these are no tracepoints
  std::vector<UsdtSite> usdt;           ///< of each probe; empty where these are no usdt probes
  std::vector<UserFunction> functions;  ///< of each uprobe and uretprobe that names one
  std::set<std::string> used_fields;    ///< of args, found by lowering
  std::set<uint32_t> used_arguments;    ///< of usdt probes, found by lowering
  std::vector<typed::Variable>
      variables;                  ///< types found so far; the n-th declaration of the clause is n
  std::vector<bool> is_declared;  ///< variables: `let $x : type`
  std::set<std::string> hoisted;  ///< variables that are used behind the block of their first use
};

struct ProbeTable {
  std::vector<bundle::Probe> probes;
  std::vector<Instance> instances;
};

/// Asks `world` what each attach point names. Refuses by name what is not built.
ProbeTable resolve_probes(const ast::Program& program,
                          World& world,
                          MissingProbes missing,
                          RunMode mode,
                          Diagnostics& diagnostics);

/// Splits instances whose events keep the fields, and whose static tracepoints the arguments, that
/// the clause uses at different places.
std::vector<Instance> split_by_layout(std::vector<Instance> instances);

}  // namespace spile::lang
