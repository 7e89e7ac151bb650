#include <fmt/format.h>

#include <algorithm>

#include "lang/codegen/compile.h"
#include "lang/codegen/emitter.h"

namespace spile::lang {

namespace {

std::string_view kind_name(bundle::ProbeKind kind) {
  switch (kind) {
    case bundle::ProbeKind::kBegin: return "BEGIN";
    case bundle::ProbeKind::kEnd: return "END";
    case bundle::ProbeKind::kInterval: return "interval";
    case bundle::ProbeKind::kUprobe: return "uprobe";
    case bundle::ProbeKind::kUretprobe: return "uretprobe";
    case bundle::ProbeKind::kKprobe: return "kprobe";
    case bundle::ProbeKind::kKretprobe: return "kretprobe";
    case bundle::ProbeKind::kTracepoint: return "tracepoint";
    case bundle::ProbeKind::kUsdt: return "usdt";
    case bundle::ProbeKind::kProfile: return "profile";
    case bundle::ProbeKind::kSoftware: return "software";
    case bundle::ProbeKind::kHardware: return "hardware";
    case bundle::ProbeKind::kWatchpoint: return "watchpoint";
    case bundle::ProbeKind::kRawTracepoint: return "rawtp";
    case bundle::ProbeKind::kFentry: return "fentry";
    case bundle::ProbeKind::kFexit: return "fexit";
    case bundle::ProbeKind::kIter: return "iter";
    case bundle::ProbeKind::kSelf: return "self";
    case bundle::ProbeKind::kTest: return "test";
    case bundle::ProbeKind::kBench: return "bench";
  }
  return "";
}

/// The kernel's BPF_OBJ_NAME_LEN is 16 with the NUL.
std::string program_name(bundle::ProbeKind kind, size_t number) {
  std::string name = fmt::format("{}_{}", kind_name(kind), number);
  return name.substr(0, 15);
}

void report(const typed::Clause& clause, const Error& error, Diagnostics& diagnostics) {
  if (error.code == ErrorCode::kInvalid) {
    diagnostics.error(clause.span, "this clause does too much at once: {}", error.message)
        .with_hint(
            "strings take most of it: read less with str(x, n), set BPFTRACE_MAX_STRLEN, or use "
            "fewer variables");
  } else {
    diagnostics.error(clause.span, "this clause is too long: {}", error.message)
        .with_hint("split it into several clauses");
  }
}

/// True if it has been told.
bool refuse_loop(const typed::Clause& clause,
                 const CompileOptions& options,
                 Diagnostics& diagnostics) {
  if (!options.calls_loops || options.has_loop_calls) return false;
  const typed::Stmt* loop = typed::find_loop(clause.body, codegen::Emitter::kFewRounds);
  if (loop == nullptr) return false;
  diagnostics
      .error(loop->span,
             "loops of more than {} rounds and walks through maps need Linux 5.17 (bpf_loop), or "
             "the user engine",
             codegen::Emitter::kFewRounds)
      .with_hint("a range of at most {} rounds between two constants works here",
                 codegen::Emitter::kFewRounds);
  return true;
}

}  // namespace

std::expected<bundle::Bundle, Diagnostics> generate(const typed::Program& program,
                                                    const CompileOptions& options) {
  codegen::Draft draft(program, options);
  Diagnostics diagnostics;
  for (size_t i = 0; i < program.clauses.size(); ++i) {
    const typed::Clause& clause = program.clauses[i];
    if (refuse_loop(clause, options, diagnostics)) continue;
    codegen::Emitter emitter(draft, clause);
    auto code = emitter.run();
    if (!code) {
      report(clause, code.error(), diagnostics);
      continue;
    }
    draft.add_program({.name = program_name(clause.context.probe, i),
                       .code = std::move(*code),
                       .context = clause.context.kind,
                       .context_size = clause.context.size_bytes,
                       .functions = emitter.function_starts()},
                      clause);
  }
  for (const typed::Clause& clause : program.clauses) {
    if (diagnostics.has_errors() || !codegen::session_of(clause)) continue;
    auto code = codegen::Emitter(draft, clause).run_entry();
    if (!code) {
      report(clause, code.error(), diagnostics);
      continue;
    }
    draft.add_entry_program({.name = program_name(bundle::ProbeKind::kUprobe, draft.programs()),
                             .code = std::move(*code),
                             .context = clause.context.kind,
                             .context_size = clause.context.size_bytes},
                            clause);
  }
  if (diagnostics.has_errors()) return std::unexpected(std::move(diagnostics));
  return draft.take();
}

}  // namespace spile::lang
