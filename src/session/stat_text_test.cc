#include "session/stat_text.h"

#include <gtest/gtest.h>

namespace spile::session {
namespace {

TEST(StatEvents, AreSplitAtCommasOutsideQuotes) {
  EXPECT_EQ(split_events("a:b,c"), (std::vector<std::string>{"a:b", "c"}));
  EXPECT_EQ(split_events("uprobe:/x:cpp:\"f(int,int)\",d,"),
            (std::vector<std::string>{"uprobe:/x:cpp:\"f(int,int)\"", "d"}));
  EXPECT_TRUE(split_events("").empty());
}

TEST(StatEvents, AreProbesTracepointsAndCounters) {
  EXPECT_EQ(parse_stat_event("kprobe:vfs_read")->probe, "kprobe:vfs_read");
  EXPECT_EQ(parse_stat_event("sched:sched_switch")->probe, "tracepoint:sched:sched_switch");
  auto faults = parse_stat_event("page-faults");
  ASSERT_TRUE(faults);
  EXPECT_TRUE(faults->probe.empty());
  EXPECT_EQ(faults->counter.symbol, "page-faults");
  EXPECT_EQ(parse_stat_event("software:cs")->counter.symbol, "context-switches");
  EXPECT_EQ(parse_stat_event("cycles")->counter.kind, bundle::ProbeKind::kHardware);
  EXPECT_EQ(parse_stat_event("software:cs:5")->probe, "software:cs:5") << "a sampled one";
  EXPECT_FALSE(parse_stat_event("nonsense"));
}

TEST(StatScript, CountsEachEventInAMapOfItsOwn) {
  std::vector<StatEvent> events = {*parse_stat_event("kprobe:vfs_*"),
                                   *parse_stat_event("page-faults"),
                                   *parse_stat_event("sched:sched_switch")};
  EXPECT_EQ(stat_script(events),
            "kprobe:vfs_* { @e0[probe] = count(); }\n"
            "tracepoint:sched:sched_switch { @e2 = count(); }\n");
}

TEST(StatScript, TimesTheReturnsThatAreAskedFor) {
  std::vector<StatEvent> events = {*parse_stat_event("kretprobe:vfs_*"),
                                   *parse_stat_event("ur:libc:fopen")};
  for (StatEvent& event : events) {
    EXPECT_TRUE(event.is_return) << event.name;
    event.with_latency = true;
  }
  EXPECT_EQ(stat_script(events),
            "kretprobe:vfs_* { @e0[probe] = count(); @h0[probe] = hist(duration, 5); @m0[probe] = "
            "max(duration); }\n"
            "ur:libc:fopen { @e1 = count(); @h1 = hist(duration, 5); @m1 = max(duration); }\n");
  for (const char* other :
       {"kprobe:vfs_read", "sched:sched_switch", "page-faults", "fexit:vfs_read"})
    EXPECT_FALSE(parse_stat_event(other)->is_return) << other;
}

// What perf 6.1 prints.
TEST(StatText, HasTheLayoutOfPerf) {
  EXPECT_EQ(stat_header("'system wide'"), "\n Performance counter stats for 'system wide':\n\n");
  EXPECT_EQ(stat_line({"sched:sched_switch", {}, 30, 0, ""}),
            "                30      sched:sched_switch\n");
  EXPECT_EQ(stat_line({"sched:sched_switch", 0, 15, 0, ""}),
            "CPU0                       15      sched:sched_switch\n");
  EXPECT_EQ(stat_footer(0.101512896), "\n       0.101512896 seconds time elapsed\n\n");
  EXPECT_EQ(interval_line(0.100200247, {"sched:sched_switch", {}, 15, 0, ""}),
            "     0.100200247                 15      sched:sched_switch\n");
}

TEST(StatText, TimeIsInMilliseconds) {
  EXPECT_EQ(stat_line({"task-clock", {}, 980'000, 0, "", true}),
            "              0.98 msec task-clock\n");
  EXPECT_NE(stat_line({"task-clock", {}, 500'000'000, 1, "", true}).find("0.500 CPUs utilized"),
            std::string::npos);
}

TEST(StatText, TellsRates) {
  auto line = stat_line({"a:b", {}, 3000, 2, ""});
  EXPECT_NE(line.find("#    1.500 K/sec"), std::string::npos) << line;
  EXPECT_NE(stat_line({"a:b", {}, 30, 2, ""}).find("#   15.000 /sec"), std::string::npos);
}

TEST(StatText, SaysWhatCouldNotBeCounted) {
  EXPECT_EQ(stat_line({"cycles", {}, 0, 1, "no PMU"}), "   <not supported>      cycles\n");
  EXPECT_NE(stat_json({"cycles", {}, 0, 1, "no PMU"}, {}).find("\"reason\" : \"no PMU\""),
            std::string::npos);
}

TEST(StatText, LatenciesFollowOnALineOfTheirOwn) {
  StatRow row{"ur:x:f", {}, 3, 0, ""};
  row.latencies.emplace();
  EXPECT_NE(stat_line(row).find("# no call"), std::string::npos);
  for (uint32_t bucket : {11u, 11u, 21u}) row.latencies->add(bucket, 1);  // 10, 10, 20 ns
  row.latencies->note_longest(20);
  EXPECT_EQ(
      stat_line(row).substr(stat_line(row).find('\n') + 1),
      std::string(75, ' ') + "# 0.010 p50, 0.020 p90, 0.020 p99, 0.020 p99.9, 0.020 max usec\n");
  EXPECT_NE(stat_json(row, {}).find("\"latency-ns\" : {\"count\" : 3, \"p50\" : 10, \"p90\" : 20, "
                                    "\"p99\" : 20, \"p99.9\" : 20, \"max\" : 20}"),
            std::string::npos)
      << stat_json(row, {});
}

TEST(StatText, JsonOfTimeIsInMillisecondsAsPerfHasIt) {
  const std::string line = stat_json({"task-clock", {}, 500'000'000, 1, "", true}, {});
  EXPECT_EQ(line,
            "{\"counter-value\" : \"500.000000\", \"unit\" : \"msec\", \"event\" : \"task-clock\", "
            "\"metric-value\" : 0.500000, \"metric-unit\" : \"CPUs utilized\"}\n");
}

TEST(StatText, JsonIsOneObjectALine) {
  EXPECT_EQ(
      stat_json({"a:b", 1, 7, 0, ""}, 0.5),
      "{\"interval\" : 0.500000000, \"cpu\" : \"1\", \"counter-value\" : \"7.000000\", \"unit\" : "
      "\"\", \"event\" : \"a:b\"}\n");
}

}  // namespace
}  // namespace spile::session
