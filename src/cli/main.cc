// argv -> session.
#include <fcntl.h>
#include <fmt/format.h>
#include <spile/detail/tracer_core.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <system_error>

#include <CLI/CLI.hpp>

#include "session/detach.h"
#include "session/dump.h"
#include "session/event_list.h"
#include "session/format.h"
#include "session/info.h"
#include "session/list.h"
#include "session/request.h"
#include "session/sites.h"
#include "session/stat.h"
#include "session/trace.h"

#ifndef SPILE_VERSION
#define SPILE_VERSION "0"
#endif

namespace {

using namespace spile;
using session::TraceRequest;

/// What the options of one command line fill.
struct Options {
  std::string program;             // -e
  std::vector<std::string> words;  // FILE or pattern, then positional parameters
  TraceRequest trace;
  std::string engine = "auto", format = "text", buffering = "line", stage;
  bool list = false;
  session::FormatRequest format_scripts;
  bool fmt = false, info = false, test = false, bench = false;
  std::string mode;
};

/// Empty where the text is a process number, else what is wrong: the form of CLI11's validators.
std::string check_pid(const std::string& text) {
  pid_t pid = 0;
  const char* end = text.data() + text.size();
  auto [rest, error] = std::from_chars(text.data(), end, pid);
  if (error == std::errc() && rest == end && pid > 0) return {};
  return fmt::format("'{}' is not the number of a process", text);
}

std::string check_command(const std::string& text) {
  const bool is_empty = text.find_first_not_of(" \t\n") == std::string::npos;
  return is_empty ? "the command is empty" : std::string();
}

/// Options that choose what is traced: the same for tracing, dump and sites.
void add_target_options(CLI::App& app, Options& options) {
  app.add_option("-e", options.program, "the script itself")->type_name("PROGRAM");
  app.add_option("-p,--pid", options.trace.target.pids,
                 "trace this process; may be given several times")
      ->type_name("PID")
      ->check(check_pid)
      ->allow_extra_args(false);
  app.add_option("-c,--cmd", options.trace.target.command,
                 "start COMMAND and trace it; ends with it, passes its status on")
      ->type_name("COMMAND")
      ->check(check_command);
  app.add_option("--engine", options.engine, "auto (default), kernel, or user")
      ->check(CLI::IsMember({"auto", "kernel", "user"}));
  app.add_flag(
      "--allow-trap", options.trace.target.allow_trap,
      "user engine: where no jump fits, an int3 served by a SIGTRAP handler of ours: "
      "microseconds a hit, and not without risk. Refused where SIGTRAP is handled, ignored "
      "or blocked; a program that changes that by system calls of its own while it is "
      "traced, or has less stack left than a signal's frame takes, can be killed");
  app.add_option(
         "--attach", options.trace.target.attach,
         "how the kernel engine attaches kprobes and uprobes: auto (default), session, multi, "
         "link, ioctl or tracefs")
      ->type_name("PATH")
      ->check(CLI::IsMember({"auto", "session", "multi", "link", "ioctl", "tracefs",
                             "kprobe.session", "kprobe.multi", "uprobe.session", "uprobe.multi"}));
  app.add_option(
         "--records", options.trace.target.records,
         "how the kernel engine gets its records: auto (default), ring (one buffer, in time "
         "order) or perf (one buffer a CPU)")
      ->type_name("PATH")
      ->check(CLI::IsMember({"auto", "ring", "perf"}));
  app.add_option(
      "words", options.words,
      "a script file (- for standard input), then its positional parameters $1, $2, ...; behind -- "
      "also its named ones: --name=value");
}

void add_trace_options(CLI::App& app, Options& options) {
  app.add_flag("-l,--list", options.list,
               "list probes that match a pattern, or those of a script; -lv with their fields");
  app.add_flag("--info", options.info, "the same as the subcommand info");
  CLI::Option* fmt =
      app.add_flag("--fmt", options.fmt, "print scripts in their usual form; all words are files");
  app.add_flag("--check", options.format_scripts.check,
               "with --fmt: print the names of those that are not in that form; status 1 if any is")
      ->needs(fmt);
  app.add_flag("-i,--in-place", options.format_scripts.in_place, "with --fmt: rewrite the files")
      ->needs(fmt);
  app.add_flag("--test", options.test, "run the script's test:NAME probes; status 1 if any fails");
  app.add_flag("--bench", options.bench, "measure the script's bench:NAME probes");
  app.add_option("--mode", options.mode, "the same by name: test, bench or format")
      ->type_name("MODE")
      ->check(CLI::IsMember({"test", "bench", "format"}));
  app.add_option("-f,--format", options.format, "text (default) or json")
      ->check(CLI::IsMember({"text", "json"}));
  app.add_option("-o,--output", options.trace.output_path, "write there instead of standard output")
      ->type_name("FILE");
  app.add_option("-B", options.buffering, "line (default), full or none")
      ->check(CLI::IsMember({"line", "full", "none"}));
  app.add_flag("--unsafe", options.trace.allow_unsafe,
               "allow functions that change what the traced program does: override()");
  app.add_flag("--paused", options.trace.paused,
               "put the probes in place switched off; SIGUSR2 switches them on and off");
  app.add_flag("-q,--quiet", options.trace.quiet, "say nothing but what the script prints");
  app.add_flag("-v,--verbose", options.trace.verbose,
               "say where each probe sits and how, and figures at the end");
}

int usage(const std::string& message) {
  fmt::print(stderr, "spile: {}\nTry 'spile --help'.\n", message);
  return session::kUsage;
}

/// `-- --name=value` is for getopt(), everything else is $1, $2, ...
void take_parameters(std::vector<std::string> words, session::Script& script) {
  for (std::string& word : words) {
    if (!word.starts_with("--") || word.size() == 2) {
      script.positional.push_back(std::move(word));
      continue;
    }
    const size_t equals = std::min(word.find('='), word.size());
    script.named[word.substr(2, equals - 2)] =
        equals == word.size() ? std::string() : word.substr(equals + 1);
  }
}

/// The script comes from -e or from the first word; the rest are its parameters.
int take_script(Options& options) {
  session::Script& script = options.trace.script;
  if (!options.program.empty()) {
    script.text = options.program;
    take_parameters(options.words, script);
    return session::kOk;
  }
  if (options.words.empty()) return usage("no script: give a FILE or -e 'PROGRAM'");
  const std::string& path = options.words.front();
  if (path == "-") {
    script.text.assign(std::istreambuf_iterator<char>(std::cin), {});
  } else {
    std::ifstream file(path, std::ios::binary);
    if (!file || file.peek() == std::ifstream::traits_type::eof()) {
      int error = errno;
      fmt::print(stderr, "spile: {}: {}\n", path,
                 file ? "is empty or cannot be read" : strerror(error));
      return session::kFailed;
    }
    script.name = path;
    script.text.assign(std::istreambuf_iterator<char>(file), {});
  }
  if (script.text.starts_with("\x7f"
                              "ELF")) {
    fmt::print(stderr,
               "spile: {} is a program (an ELF file), not a script; to trace it: spile -e "
               "'PROGRAM' -c {}\n",
               script.name, script.name);
    return session::kFailed;
  }
  take_parameters({options.words.begin() + 1, options.words.end()}, script);
  return session::kOk;
}

void take_choices(Options& options) {
  options.trace.target.only_traps = getenv("SPILE_ONLY_TRAPS") != nullptr;
  auto& pids = options.trace.target.pids;
  std::ranges::sort(pids);
  pids.erase(std::ranges::unique(pids).begin(), pids.end());
  options.trace.format = options.format == "json" ? session::Format::kJson : session::Format::kText;
  options.trace.line_buffered = options.buffering != "full";
  options.trace.target.engine = options.engine == "kernel" ? session::EngineChoice::kKernel
                                : options.engine == "user" ? session::EngineChoice::kUser
                                                           : session::EngineChoice::kAuto;
}

int run_list(Options& options) {
  if (!options.program.empty()) return session::list_script(options.trace);
  std::string pattern = options.words.empty() ? "*" : options.words.front();
  if (!options.words.empty() && pattern.find(':') == std::string::npos &&
      access(pattern.c_str(), R_OK) == 0) {
    if (int status = take_script(options); status != session::kOk) return status;
    return session::list_script(options.trace);
  }
  return session::list_pattern(pattern, options.trace);
}

int run_format(Options& options) {
  options.format_scripts.program = options.program;
  options.format_scripts.files = options.words;
  if (options.program.empty() && options.words.empty())
    return usage("nothing to format: give a FILE, - for standard input, or -e 'PROGRAM'");
  return session::format_scripts(options.format_scripts);
}

int run_main(Options& options) {
  const bool is_test = options.test || options.mode == "test";
  const bool is_bench = options.bench || options.mode == "bench";
  if (is_test && is_bench) return usage("--test and --bench do not go together");
  if (options.fmt || options.mode == "format") return run_format(options);
  take_choices(options);
  if (is_test) options.trace.purpose = session::Purpose::kTest;
  if (is_bench) options.trace.purpose = session::Purpose::kBench;
  if (options.info) return session::info(options.trace.format);
  if (options.list) {
    options.trace.script.text = options.program;
    return run_list(options);
  }
  if (int status = take_script(options); status != session::kOk) return status;
  return session::trace(options.trace);
}

int run_dump(Options& options) {
  take_choices(options);
  if (int status = take_script(options); status != session::kOk) return status;
  return session::dump(options.trace, options.stage);
}

int run_sites(Options& options) {
  take_choices(options);
  bool has_script = !options.program.empty() || !options.words.empty();
  if (!has_script) return session::show_sites(options.trace.target.pids);
  if (int status = take_script(options); status != session::kOk) return status;
  return session::plan_sites(options.trace);
}

/// Options of `stat`; its command follows `--`.
void add_stat_options(CLI::App& app, session::StatRequest& stat, Options& options) {
  app.add_option("-e,--event", stat.events,
                 "what to count: PROBE[,PROBE...], a tracepoint (sched:sched_switch) or a counter "
                 "(page-faults)")
      ->type_name("EVENTS")
      ->required()
      ->allow_extra_args(false);
  app.add_flag("-a,--all-cpus", stat.system_wide, "of all processes");
  app.add_option("-p,--pid", options.trace.target.pids, "of this process")
      ->type_name("PID")
      ->check(check_pid)
      ->allow_extra_args(false);
  app.add_option("-I,--interval-print", stat.interval_ms, "print every so many milliseconds")
      ->type_name("MS")
      ->check(CLI::Range(10, 86'400'000));
  app.add_flag("-A,--per-cpu", stat.per_cpu, "a line for each CPU");
  app.add_flag("-L,--latency", stat.latency,
               "how long calls took, by percentile: of uretprobe and kretprobe events");
  app.add_option("-f,--format", options.format, "text (default) or json")
      ->check(CLI::IsMember({"text", "json"}));
  app.add_option("-o,--output", stat.output_path, "write there instead of standard error")
      ->type_name("FILE");
  app.add_option("--engine", options.engine, "auto (default), kernel, or user")
      ->check(CLI::IsMember({"auto", "kernel", "user"}));
  app.add_option_function<std::string>(
         "-x", [](const std::string&) {},
         "perf's fields with a separator: not built yet, see -f json")
      ->type_name("SEP")
      ->check([](const std::string&) {
        return std::string("fields with a separator are not built yet; -f json is for programs");
      });
  app.add_option("command", stat.command,
                 "run this and count until it ends (after --); of a probe the hits of the process "
                 "itself, of a counter also those of its children");
}

int run_stat(Options& options, session::StatRequest& stat) {
  take_choices(options);
  stat.target = options.trace.target;
  stat.format = options.trace.format;
  return session::stat(stat);
}

int parse_and_run(int argc, char** argv) {
  Options options;
  CLI::App app{
      "spile - trace running programs and the running kernel\n\n"
      "  spile -e 'uprobe:libc:fopen { printf(\"%s\\n\", str(arg0)); }' -c 'getent services http'\n"
      "  spile -e 'tracepoint:syscalls:sys_enter_openat { @[comm] = count(); }'\n"
      "  spile -l 'uprobe:libc:*alloc*'"};
  app.set_version_flag("-V,--version", "spile " SPILE_VERSION);
  app.get_formatter()->column_width(34);
  add_target_options(app, options);
  add_trace_options(app, options);

  CLI::App* sites = app.add_subcommand("sites",
                                       "where a script's probes would sit in a process and how, or "
                                       "(without a script) where they sit now");
  add_target_options(*sites, options);
  CLI::App* detach =
      app.add_subcommand("detach", "take out what a spile that is gone left in a process");
  detach->add_option("-p,--pid", options.trace.target.pids, "the process")
      ->required()
      ->type_name("PID")
      ->check(check_pid);
  CLI::App* dump = app.add_subcommand("dump", "show a stage of a script's way to machine code");
  dump->add_option("--stage", options.stage, "tokens, ast, typed, bpf, plan or jit")
      ->required()
      ->check(CLI::IsMember({"tokens", "ast", "typed", "bpf", "plan", "jit"}));
  add_target_options(*dump, options);

  session::StatRequest stat_request;
  CLI::App* stat = app.add_subcommand("stat", "count events, as perf stat does");
  add_stat_options(*stat, stat_request, options);
  CLI::App* list =
      app.add_subcommand("list", "events that can be counted, as perf list shows them");
  list->add_option("words", options.words, "a pattern: 'sched:*'");
  CLI::App* info =
      app.add_subcommand("info", "what works on this machine, what is missing, and how to get it");
  info->add_option("-f,--format", options.format, "text (default) or json")
      ->check(CLI::IsMember({"text", "json"}));

  // How the library starts us: the request comes over a socket.
  CLI::App* for_program = app.add_subcommand("library-tracer", "")->group("");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    int status = app.exit(error);
    return status == 0 ? session::kOk : session::kUsage;
  }
  if (for_program->parsed()) return session::trace_for_program(SPILE_TRACER_DESCRIPTOR);
  if (detach->parsed()) return session::detach(options.trace.target.pids);
  if (sites->parsed()) return run_sites(options);
  if (dump->parsed()) return run_dump(options);
  if (stat->parsed()) return run_stat(options, stat_request);
  if (list->parsed())
    return session::list_events(options.words.empty() ? "" : options.words.front(),
                                options.trace.target);
  if (info->parsed()) {
    take_choices(options);
    return session::info(options.trace.format);
  }
  return run_main(options);
}

}  // namespace

namespace {

/// Closed ones would be given to the next file that is opened, and messages written into it: it may
/// be a target's memory.
bool hold_standard_descriptors() {
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(fd, F_GETFD) == -1 && open("/dev/null", O_RDWR) != fd) return false;
  }
  return true;
}

void fail_to_write(int number) {
  std::fputs("spile: write the output: ", stderr);
  std::fputs(std::strerror(number), stderr);
  std::fputs("\n", stderr);
}

}  // namespace

int main(int argc, char** argv) {
  if (!hold_standard_descriptors()) return 1;
  // What cannot be written is thrown by fmt: whatever is set is taken back on the way out.
  try {
    const int status = parse_and_run(argc, argv);
    if (std::fflush(stdout) == 0 || status != 0) return status;
    fail_to_write(errno);
  } catch (const std::system_error& error) {
    fail_to_write(error.code().value());
  }
  return 1;
}
