// Functions that the tests probe: in a source file of their own, so that calls stay calls.
#pragma once

extern "C" {
long probed_sum(long a, long b);              // several instructions
long probed_many(long, long, long, long, long, long, long, long);
double probed_doubles(double a, double b);
long probed_recursive(long depth);
long probed_branches(long n);                 // several returns
long probed_throws(long n);                   // throws if n is odd
long probed_loop(long n);
long probed_inner(long n);                    // called by probed_outer
long probed_outer(long n);
long probed_calls(void (*f)(), long n);       // calls f, which may go on elsewhere
void probed_nops(void);                       // entry nops
extern const unsigned char probed_flags_at[];  // an instruction in the middle that keeps flags for the next
long probed_flags(long a, long b);            // 1 if a < b
long probed_faults(const long* at);           // reads *at, in its second instruction
long probed_crowded(long n);                  // doubles n; the next function begins right behind its return
long probed_neighbour(long n);                // n + 1
long probed_tight(long n);                    // counts n; behind its head every byte is jumped to
long probed_read(int fd, void* to, unsigned long bytes);  // read(2): the system call is in the window of its entry
long probed_only_by_a_child(long n);
long probed_only_by_a_parent(long n);
long probed_red_zone(long a);                 // keeps a below its stack pointer
}
