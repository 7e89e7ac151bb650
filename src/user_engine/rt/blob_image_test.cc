#include <gtest/gtest.h>

#include "abi/code_region.h"
#include "user_engine/rt/blob.h"

namespace spile::rt {
namespace {

TEST(BlobImage, FitsInFrontOfTheConstants) {
  EXPECT_FALSE(blob_bytes().empty());
  EXPECT_LE(blob_bytes().size(), abi::kMaxBlobBytes);
}

TEST(BlobImage, EntriesAreInsideAndTheirStackIsBounded) {
  for (const int32_t helper :
       {1, 2, 3, 5, 8, 14, 15, 16, 112, 113, 114, 115, 125, 130, 131, 132, 133, 174}) {
    ASSERT_TRUE(helper_offset(helper)) << helper;
    EXPECT_LT(*helper_offset(helper), blob_bytes().size());
    EXPECT_LE(*helper_stack_bytes(helper), kMaxHelperStackBytes);
  }
}

TEST(BlobImage, HasNoEntryForOtherHelpers) {
  EXPECT_FALSE(helper_offset(0));
  EXPECT_FALSE(helper_offset(6));
  EXPECT_FALSE(helper_stack_bytes(-1));
}

}  // namespace
}  // namespace spile::rt
