// Case 4: two functions of one byte each, next to each other, both global and both probed. A jump for the first one would
// cover the second.
#include "asm_case.h"
        .text
        .p2align 4
FUNCTION(probe_me_first)
        ret
END(probe_me_first)
FUNCTION(probe_me_second)
        ret
END(probe_me_second)
        .p2align 4
FUNCTION(twin_first)
        ret
END(twin_first)
FUNCTION(twin_second)
        ret
END(twin_second)
LIST_CASE(first, probe_me_first, twin_first, ENTRIES_ONE)
LIST_CASE(second, probe_me_second, twin_second, ENTRIES_ONE)
NO_EXECUTABLE_STACK
