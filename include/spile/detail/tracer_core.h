// How a program and the spile that traces for it talk: frames over a socket. C and C++; programs use tracer.hpp.
//
//   program                              spile (a process of its own: nobody can stop its own threads)
//   kStart: the script, where        ->  compiles, attaches
//                                    <-  kStarted, or kScriptError ... and its end
//   kReadMap: a name                 ->
//                                    <-  kMapRead or kNoMap; before it whatever the script printed
//   kStop                            ->  detaches, runs END
//                                    <-  what is left, the maps, kStats, its end
//
// A frame is a u32 of the bytes that follow, a u8 of its type, and what that type has. Numbers are little endian. Text is a
// u32 of its bytes, and those. Either side that closes the socket ends the trace.
#ifndef SPILE_DETAIL_TRACER_CORE_H
#define SPILE_DETAIL_TRACER_CORE_H

#include <spile/detail/base.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SPILE_TRACER_PROTOCOL 1u
/// Where the tracing process has the socket.
#define SPILE_TRACER_DESCRIPTOR 3

enum spile_frame_type {
  /* To spile. */
  SPILE_FRAME_START = 1,  ///< u32 protocol, u8 engine, u8 flags, text script, u32 n, n i32 pids, u32 n, n text parameters
  SPILE_FRAME_READ_MAP,   ///< text name
  SPILE_FRAME_STOP,
  /* To the program. */
  SPILE_FRAME_STARTED = 32,  ///< u32 protocol, u64 probes in place
  SPILE_FRAME_SCRIPT_ERROR,  ///< u32 line, u32 column (from 1), text message, text hint
  SPILE_FRAME_TEXT,          ///< u8 spile_text_source, text
  SPILE_FRAME_VALUE,         ///< value
  SPILE_FRAME_MAP,           ///< map: print(@x), and at the end
  SPILE_FRAME_MAP_READ,      ///< map: the answer to READ_MAP
  SPILE_FRAME_NO_MAP,        ///< text why
  SPILE_FRAME_LOST,          ///< u64 records
  SPILE_FRAME_ENDED,         ///< END has run; maps follow
  SPILE_FRAME_STATS,         ///< u64 missed hits, records lost, updates of full maps, failed reads, stacks lost, unseen
                             ///< returns, loops cut
};

/// What printed a text.
enum spile_text_source {
  SPILE_TEXT_PRINTF,
  SPILE_TEXT_TIME,
  SPILE_TEXT_JOIN,
  SPILE_TEXT_SYSTEM,
  SPILE_TEXT_CAT,
  SPILE_TEXT_MESSAGE,  ///< spile itself: a probe that was refused, a warning
};

/// A value is a u8 of these and: signed, unsigned, pointer: u64; text, bytes: text; tuple: u32 n, n values; record: the
/// same, then n text (their names).
/// A map is: text name, u8 has keys, u32 n, n times: value key, u8 0 and a value, or u8 1 and u32 n, n times i64 low, i64 high,
/// u64 count (a histogram: low <= v <= high).
enum spile_value_kind {
  SPILE_VALUE_NONE,
  SPILE_VALUE_SIGNED,
  SPILE_VALUE_UNSIGNED,
  SPILE_VALUE_POINTER,
  SPILE_VALUE_TEXT,
  SPILE_VALUE_BYTES,
  SPILE_VALUE_TUPLE,
  SPILE_VALUE_RECORD,
};

enum spile_tracer_engine { SPILE_ENGINE_USER, SPILE_ENGINE_KERNEL, SPILE_ENGINE_AUTO };
enum spile_tracer_flags {
  SPILE_TRACER_ALLOW_TRAP = 1,
  SPILE_TRACER_ALLOW_UNSAFE = 2,
};

struct spile_tracer;
struct spile_tracer_request {
  const char* script;
  const char* program;  ///< the spile to run; null: $SPILE_PROGRAM, beside the library, $PATH
  const int* pids;
  size_t pid_count;  ///< 0: the calling process
  const char* const* parameters;
  size_t parameter_count;
  unsigned engine, flags;
};

/// Starts a spile and sends it the request; what comes of it is to be received.
/// Errors: -ENOENT no spile found, -EPERM seccomp, what starting a process may give.
SPILE_API int spile_tracer_open(const struct spile_tracer_request* request, struct spile_tracer** tracer);
/// `bytes` behind the size and the type. -EPIPE: spile has ended.
SPILE_API int spile_tracer_send(struct spile_tracer* tracer, unsigned type, const void* bytes, size_t size);
/// The next frame (its type first), valid until the next call. 1; 0 nothing within the time (negative: for ever);
/// -EPIPE spile has ended and nothing is left.
SPILE_API int spile_tracer_receive(struct spile_tracer* tracer, int timeout_ms, const unsigned char** frame, size_t* size);
/// What spile has written on its standard error since the last call: at most `size` bytes; how many.
SPILE_API size_t spile_tracer_messages(struct spile_tracer* tracer, char* to, size_t size);
/// Ends spile if it still runs (it detaches first) and frees the tracer. In a forked child only its copy of it.
SPILE_API void spile_tracer_close(struct spile_tracer* tracer);

#ifdef __cplusplus
}
#endif
#endif
