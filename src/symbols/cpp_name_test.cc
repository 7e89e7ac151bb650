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
  EXPECT_FALSE(cpp_name_matches("ns::f", "ns::f(int) [clone .cold]"));
  EXPECT_TRUE(cpp_name_matches("ns::f", "ns::f(int) [clone .isra.0]"));
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

TEST(CppName, OfATemplateNamesAllThatWasMadeOfIt) {
  EXPECT_TRUE(cpp_name_matches("ns::tf", "int ns::tf<int>(int)"));
  EXPECT_TRUE(cpp_name_matches("ns::tf", "void ns::tf<std::vector<int, A<int> > >(int)"));
  EXPECT_TRUE(cpp_name_matches("C::get", "C<int, 3>::get() const"));
  EXPECT_TRUE(cpp_name_matches("std::vector::push_back", "std::vector<A, B<A> >::push_back(A&&)"));
  EXPECT_FALSE(cpp_name_matches("ns::tf", "int ns::tfx<int>(int)"));
  EXPECT_FALSE(cpp_name_matches("ns::tf", "int ns::tf<int>::operator()(int)"));
  EXPECT_FALSE(cpp_name_matches("ns::tf<long>", "int ns::tf<int>(int)"));
}

TEST(CppName, KnowsOperatorsFromTemplateArguments) {
  EXPECT_TRUE(cpp_name_matches("C::operator<", "bool C<int>::operator<(C<int> const&)"));
  EXPECT_TRUE(cpp_name_matches("C::operator<<", "C<int>::operator<<(int)"));
  EXPECT_TRUE(cpp_name_matches("C::operator->", "C<int>::operator->() const"));
  EXPECT_TRUE(cpp_name_matches("ns::operator<", "bool ns::operator< <int>(C<int>, C<int>)"));
  EXPECT_FALSE(cpp_name_matches("C::operator", "bool C<int>::operator<(C<int> const&)"));
}

}  // namespace
}  // namespace spile::symbols
