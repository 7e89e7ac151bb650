#include "lang/syntax/parser.h"

#include <gtest/gtest.h>

#include "lang/syntax/print.h"

namespace spile::lang {
namespace {

struct Parsed {
  Source source;
  Diagnostics diagnostics;
  ast::Program program;
};

Parsed parse_text(std::string text, std::vector<std::string> positional = {}) {
  Parsed out{Source("stdin", std::move(text)), {}, {}};
  out.program = parse(out.source, {std::move(positional)}, out.diagnostics);
  return out;
}

std::vector<std::string> errors(std::string text) {
  std::vector<std::string> out;
  for (const Diagnostic& d : parse_text(std::move(text)).diagnostics) out.push_back(d.message);
  return out;
}

/// The fully parenthesised form of an expression.
std::string shape(std::string_view expression) {
  const Parsed parsed = parse_text(fmt::format("BEGIN {{ $r = {}; }}", expression));
  if (parsed.diagnostics.has_errors()) return render(parsed.source, parsed.diagnostics);
  return to_source(*ast::as<ast::Assign>(*parsed.program.clauses[0].body.statements[0]).value);
}

TEST(Expression, HasPrecedencesOfC) {
  EXPECT_EQ(shape("1 + 2 * 3"), "(1 + (2 * 3))");
  EXPECT_EQ(shape("1 - 2 - 3"), "((1 - 2) - 3)");
  EXPECT_EQ(shape("a || b && c | d ^ e & f == g < h << i + j * k"),
            "(a || (b && (c | (d ^ (e & (f == (g < (h << (i + (j * k))))))))))");
  EXPECT_EQ(shape("a * b + c << d < e == f & g ^ h | i && j || k"),
            "((((((((((a * b) + c) << d) < e) == f) & g) ^ h) | i) && j) || k)");
  EXPECT_EQ(shape("a ? b : c ? d : e"), "(a ? b : (c ? d : e))");
  EXPECT_EQ(shape("a ?: b || c"), "(a ?: (b || c))");
  EXPECT_EQ(shape("-a * !b"), "(-a * !b)");
  EXPECT_EQ(shape("*$p.x"), "*$p.x");
  EXPECT_EQ(shape("-$x++"), "-$x++");
  EXPECT_EQ(shape("$a - -1"), "($a - -1)");
  EXPECT_EQ(shape("(1 + 2) * 3"), "((1 + 2) * 3)");
}

TEST(Expression, TellsCastsFromParentheses) {
  EXPECT_EQ(shape("(uint64)$x + 1"), "((uint64)$x + 1)");
  EXPECT_EQ(shape("(struct foo *)arg0"), "(struct foo *)arg0");
  EXPECT_EQ(shape("(struct foo**)arg0"), "(struct foo **)arg0");
  EXPECT_EQ(shape("(pid_t)arg0"), "(pid_t)arg0");
  EXPECT_EQ(shape("(pid_t *)-1"), "(pid_t *)-1");
  EXPECT_EQ(shape("(pid) - 1"), "(pid - 1)");
  EXPECT_EQ(shape("(pid) * 2"), "(pid * 2)");
  EXPECT_EQ(shape("(pid) & 2"), "(pid & 2)");
  EXPECT_EQ(shape("(uint8)-1"), "(uint8)-1");
  EXPECT_EQ(shape("(int8[])\"s\""), "(int8[])\"s\"");
  EXPECT_EQ(shape("(string[64])p"), "(string[64])p");
  EXPECT_EQ(shape("(char[4])$x"), "(char[4])$x");
  EXPECT_EQ(shape("(args[4])"), "args[4]");
  EXPECT_EQ(shape("(a[1]) + 2"), "(a[1] + 2)");
  EXPECT_EQ(shape("(typeof(*$p))$x"), "(typeof(*$p))$x");
  EXPECT_EQ(shape("(enum e)1"), "(enum e)1");
  EXPECT_EQ(shape("(a * b)"), "(a * b)");
}

TEST(Expression, ReadsTuplesAndRecords) {
  EXPECT_EQ(shape("()"), "()");
  EXPECT_EQ(shape("(1,)"), "(1,)");
  EXPECT_EQ(shape("(1, \"a\", (2, 3))"), "(1, \"a\", (2, 3))");
  EXPECT_EQ(shape("$t.0.1 + $t[2]"), "($t.0.1 + $t[2])");
  EXPECT_EQ(shape("(a=1, b=\"x\")"), "(a=1, b=\"x\")");
}

TEST(Expression, KeepsNamesThatLookLikeKeywords) {
  EXPECT_EQ(shape("import"), "import");
  EXPECT_EQ(shape("args.if + args->for"), "(args.if + args->for)");
  EXPECT_EQ(shape("config"), "config");
}

TEST(Expression, RefusesFloats) {
  EXPECT_EQ(errors("BEGIN { $x = 1.5; }").at(0),
            "syntax error: there are no floating-point numbers");
}

TEST(Statement, NeedsASemicolonOnlyBetween) {
  EXPECT_TRUE(errors("BEGIN { $x = 1 }").empty());
  EXPECT_TRUE(errors("BEGIN { $x = 1;; @y = 2; }").empty());
  EXPECT_TRUE(errors("BEGIN { if 1 { } if 2 { } }").empty());
  EXPECT_EQ(errors("BEGIN { $x = 1 $y = 2; }"),
            (std::vector<std::string>{"syntax error: expected an operator or ';', found '$y'"}));
}

TEST(Statement, AForgottenSemicolonPointsAtTheLineThatLacksIt) {
  const Parsed parsed = parse_text("BEGIN {\n  $x = 1\n  $y = 2;\n}");
  ASSERT_EQ(parsed.diagnostics.all().size(), 1u);
  EXPECT_EQ(parsed.source.position(parsed.diagnostics.all()[0].span.begin), (Position{2, 9}));
  EXPECT_EQ(parsed.program.clauses[0].body.statements.size(), 2u);
}

TEST(Statement, MarksABlocksValue) {
  const Parsed parsed = parse_text("BEGIN { $x = { f(); g() }; }");
  const auto& block = ast::as<ast::BlockExpr>(
      *ast::as<ast::Assign>(*parsed.program.clauses[0].body.statements[0]).value);
  EXPECT_TRUE(ast::as<ast::ExprStmt>(*block.block.statements[0]).has_semicolon);
  EXPECT_FALSE(ast::as<ast::ExprStmt>(*block.block.statements[1]).has_semicolon);
}

TEST(Statement, ReadsIdiomsOfLongScripts) {
  const std::vector<std::string> bodies = {
      "for $j : ((uint64)0)..((uint64)$max) { continue; }",
      "for $kv : @m { $x += $kv.1; break }",
      "if ($path[0] != \"/\"[0]) { f(); } g()",
      "$m = (struct mount *)(((uint64)$v) - offsetof(struct mount, mnt));",
      "let $k = (tid, ((((uint64)$d) - $j) - 1)); delete(@p, $k);",
      "$r = if ($x) { if ($y) { 1 } else { 2 } } else { 0 };",
      "if (f({ $y += 1; $y }) != 10) { return 1; }",
      "if ((a=(1, \"b\"), c=(x=1)) != $b || $b.a.0 != 1) { return 1 }",
      "let $y: typeof(x); if true { $y = 1 } x + $y",
      "@x = lhist(1, -10, 10, 1); @e[ONE + 1] = TWO - 1; @t = tseries(1, 1ms, 5);",
      "if (@x % 2 != 0 || !($a != $b)) { } else if 1 { } else { }",
      "$p = (int8*)0x32; if (!(0x32 < $p && $p > 0x32)) { _ = delete(@x); }",
  };
  for (const std::string& body : bodies) {
    const Parsed parsed = parse_text("BEGIN { " + body + " }");
    EXPECT_EQ(render(parsed.source, parsed.diagnostics), "");
  }
}

TEST(Errors, AreReportedTogether) {
  const auto all = errors(
      "BEGIN { $x = ; @y = 1 +; f(1,; $ok = 1; }\n"
      "kprob:f { }\n"
      "kprobe:g { $z = ]; }\n");
  EXPECT_EQ(all, (std::vector<std::string>{
                     "syntax error: expected an expression, found ';'",
                     "syntax error: expected an expression, found ';'",
                     "syntax error: expected an expression, found ';'",
                     "unknown probe type 'kprob'",
                     "syntax error: expected an expression, found ']'",
                 }));
}

TEST(Errors, SayWhatWasExpected) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "the script has no probe"},
      {"// nothing", "the script has no probe"},
      {"BEGIN", "syntax error: expected '{' after the probe, found the end of the script"},
      {"BEGIN {", "syntax error: this '{' is never closed"},
      {"BEGIN { } }", "syntax error: this '}' closes nothing"},
      {"BEGIN { };", "syntax error: a ';' between probes"},
      {"{ }", "syntax error: expected a probe, found '{'"},
      {"BEGIN /1 { }", "syntax error: this predicate is not closed before '{'"},
      {"BEGIN / / { }", "syntax error: expected an expression, found '/'"},
      {"BEGIN END { }",
       "syntax error: expected ',', a predicate or '{' after a probe, found 'END'"},
      {"BEGIN { 1 = 2; }", "syntax error: only variables ($x) and maps (@x) can be assigned to"},
      {"BEGIN { ++1; }", "syntax error: '++' needs a variable ($x) or a map (@x)"},
      {"BEGIN { @x[] = 1; }", "syntax error: expected an expression, found ']'"},
      {"BEGIN { if { } }", "syntax error: expected '{' after the condition, found '}'"},
      {"BEGIN { for (i : 0..1) { } }", "syntax error: expected a variable after for, found 'i'"},
      {"BEGIN { let x; }", "syntax error: expected a variable after let, found 'x'"},
      {"BEGIN { let $x : 5; }", "syntax error: expected a type, found '5'"},
      {"BEGIN { sizeof(struct) }", "syntax error: expected an expression, found 'struct'"},
      {"BEGIN { f(1 2) }", "syntax error: expected ')' after the arguments, found '2'"},
      {"BEGIN { else { } }", "syntax error: expected an expression, found 'else'"},
      {"config = { x }", "syntax error: expected '=' after a setting's name, found '}'"},
      {"import \"x\" BEGIN { }", "syntax error: expected ';' after import, found 'BEGIN'"},
      {"let @a = 5; BEGIN { }",
       "syntax error: expected a kind of map: hash, lruhash, percpuhash or percpulruhash, found "
       "'5'"},
  };
  for (const auto& [text, message] : cases) {
    const auto all = errors(text);
    ASSERT_FALSE(all.empty()) << text;
    EXPECT_EQ(all[0], message) << text;
  }
}

TEST(Errors, OfANestedBlockKeepTheRest) {
  const Parsed parsed = parse_text("BEGIN { if (1) { $x = ; $y = 2; } $z = 3; } END { }");
  EXPECT_EQ(parsed.diagnostics.error_count(), 1u);
  EXPECT_EQ(parsed.program.clauses.size(), 2u);
  EXPECT_EQ(parsed.program.clauses[0].body.statements.size(), 2u);
}

std::string repeat(std::string_view text, size_t times) {
  std::string out;
  for (size_t i = 0; i < times; i++) out += text;
  return out;
}

TEST(Depth, AllowsWhatPeopleWrite) {
  EXPECT_TRUE(errors("BEGIN { $x = " + repeat("(", 60) + "1" + repeat(")", 60) + "; }").empty());
  EXPECT_TRUE(errors("BEGIN { $x = 1" + repeat(" + 1", 400) + "; }").empty());
  EXPECT_TRUE(errors("BEGIN { if 1 {}" + repeat(" else if 1 {}", 150) + " }").empty());
}

TEST(Depth, IsLimitedForHostileScripts) {
  constexpr size_t kMany = 100'000;
  const std::vector<std::string> texts = {
      "BEGIN { $x = " + repeat("(", kMany) + "1" + repeat(")", kMany) + "; }",
      "BEGIN { $x = " + repeat("(", kMany),
      "BEGIN { $x = " + repeat("-", kMany) + "1; }",
      "BEGIN { $x = " + repeat("(uint8)", kMany) + "1; }",
      "BEGIN { $x = 1" + repeat(" + 1", kMany) + "; }",
      "BEGIN { $x = 1" + repeat(" ? 1 : 1", kMany) + "; }",
      "BEGIN { $x = $p" + repeat(".a", kMany) + "; }",
      "BEGIN { $x = $p" + repeat("[1]", kMany) + "; }",
      "BEGIN { $x = " + repeat("@m[", kMany) + "1" + repeat("]", kMany) + "; }",
      "BEGIN { $x = " + repeat("f(", kMany) + "; }",
      "BEGIN " + repeat("{", kMany),
      "BEGIN { " + repeat("if 1 { ", kMany),
      "BEGIN { if 1 {}" + repeat(" else if 1 {}", kMany) + " }",
      "BEGIN { " + repeat("unroll(1) { ", kMany),
      "BEGIN { $x = (" + repeat("typeof(", kMany) + "1)1; }",
      "BEGIN { $x = (int8" + repeat("*", kMany) + ")1; }",
      "BEGIN { $x = (int8" + repeat("[", kMany) + "1; }",
      "BEGIN { $x = (x" + repeat("[1]", kMany) + ")1; }",
      "BEGIN { $x = " + repeat("{ $x = ", kMany),
      "BEGIN " + repeat("/ 1 ", kMany) + "/ { }",
      repeat("struct x { ", kMany),
      repeat("#define X\n", 1000) + repeat("BEGIN,", kMany),
  };
  for (const std::string& text : texts) EXPECT_FALSE(errors(text).empty()) << text.substr(0, 40);
}

TEST(Ids, AreDenseAndSpansLieInTheScript) {
  const Parsed parsed = parse_text("BEGIN { $x = (1 + 2) * 3; @y[pid] = count(); }");
  EXPECT_EQ(parsed.program.node_count, 11u);
  const auto& assign = ast::as<ast::Assign>(*parsed.program.clauses[0].body.statements[0]);
  EXPECT_EQ(parsed.source.text(assign.span), "$x = (1 + 2) * 3");
  EXPECT_EQ(parsed.source.text(assign.value->span), "(1 + 2) * 3");
  EXPECT_EQ(parsed.source.text(parsed.program.clauses[0].body.span).front(), '{');
}

TEST(Define, BodyIsReadAsAnExpressionOnRequest) {
  Parsed parsed = parse_text("#define LIMIT (1 << 4) // sixteen\nBEGIN { @ = LIMIT; }");
  ASSERT_EQ(parsed.program.c_definitions.size(), 1u);
  const auto& define = parsed.program.c_definitions[0];
  EXPECT_EQ(define.name, "LIMIT");
  const auto expr =
      parse_expression(parsed.source, define.body, parsed.program, parsed.diagnostics);
  ASSERT_TRUE(expr);
  EXPECT_EQ(to_source(*expr), "(1 << 4)");
  EXPECT_LT(expr->id, parsed.program.node_count);
}

TEST(CDefinitions, AreKeptRaw) {
  const Parsed parsed = parse_text(
      "#include <linux/fs.h>\nstruct a { int x; } __attribute__((packed));\nenum { A, B "
      "};\ntypedef struct { int z; } t;\nBEGIN { }");
  ASSERT_FALSE(parsed.diagnostics.has_errors()) << render(parsed.source, parsed.diagnostics);
  const auto& all = parsed.program.c_definitions;
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all[0].name, "<linux/fs.h>");
  EXPECT_EQ(all[1].name, "a");
  EXPECT_EQ(parsed.source.text(all[1].body), " int x; ");
  EXPECT_EQ(all[2].kind, ast::CDefinition::Kind::kEnum);
  EXPECT_EQ(all[3].kind, ast::CDefinition::Kind::kTypedef);
}

}  // namespace
}  // namespace spile::lang
