#include "symbols/cpp_name.h"

#include <gtest/gtest.h>

namespace spile::symbols {
namespace {

TEST(CppName, IsDemangled) {
  EXPECT_EQ(demangle("_ZN2ns1fEi"), "ns::f(int)");
  EXPECT_EQ(demangle("main"), std::nullopt);
  EXPECT_EQ(demangle("_Znonsense"), std::nullopt);
  EXPECT_EQ(demangle("_Z" + std::string(5000, '1')), std::nullopt);
}

TEST(CppName, MatchesWithAndWithoutParameters) {
  EXPECT_TRUE(cpp_name_matches("ns::f", "ns::f(int)"));
  EXPECT_TRUE(cpp_name_matches("ns::f(int)", "ns::f(int)"));
  EXPECT_FALSE(cpp_name_matches("ns::f(long)", "ns::f(int)"));
  EXPECT_FALSE(cpp_name_matches("ns::f", "ns::ff(int)"));
  EXPECT_FALSE(cpp_name_matches("f", "ns::f(int)"));
  EXPECT_TRUE(cpp_name_matches("ns::*", "ns::f(int)"));
  EXPECT_TRUE(cpp_name_matches("ns::C::get", "ns::C::get() const"));
}

TEST(CppName, KnowsWhichParenthesisOpensTheParameters) {
  EXPECT_TRUE(cpp_name_matches("C::operator()", "C::operator()(int) const"));
  EXPECT_TRUE(cpp_name_matches("f", "f(void (*)(int))"));
  EXPECT_TRUE(cpp_name_matches("f(int)::{lambda()#1}::operator()",
                               "f(int)::{lambda()#1}::operator()() const"));
}

TEST(CppName, LeavesOutTheReturnTypeOfTemplates) {
  EXPECT_TRUE(cpp_name_matches("ns::f<int>", "void ns::f<int>(int)"));
  EXPECT_TRUE(cpp_name_matches("ns::g<a, b>", "std::vector<a, b> ns::g<a, b>(a)"));
}

}  // namespace
}  // namespace spile::symbols
