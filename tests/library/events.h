// Tracepoints that two source files share.
#pragma once

#include <spile/tracepoint.hpp>

enum class Colour : short { kRed = -3, kBlue = 4 };

SPILE_TRACEPOINT(demo, bare)
SPILE_TRACEPOINT(demo, request, (int, fd), (const char*, path))
SPILE_TRACEPOINT(demo, wide, (signed char, a), (unsigned short, b), (Colour, c), (bool, d), (long, e), (void*, f),
                 (unsigned, g), (unsigned long, h))
SPILE_TRACEPOINT_CONDITION(demo, large, size > 100, (unsigned long, size))
SPILE_TRACEPOINT_CLASS(Transfer, (int, fd), (unsigned long, bytes))
SPILE_TRACEPOINT_EVENT(Transfer, io, read)
SPILE_TRACEPOINT_EVENT(Transfer, io, write)

/// In another source file.
void pass_request_elsewhere(int fd, const char* path);
