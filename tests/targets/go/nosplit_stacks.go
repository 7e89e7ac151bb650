// Go program whose goroutines come to the very end of their stacks, and call functions there that do not check for room. Right
// below a small stack lies another goroutine's: each goroutine looks again and again whether what it keeps at the top of its own
// is as it was. Meanwhile the collector runs, goroutines are preempted everywhere, and nil pointers are dereferenced by functions'
// first instructions. The arguments and verdict are those of the other targets; calls of probe_me_leaf and probe_me_nil are counted.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

var calls int64

type node struct{ value, next int }

// A load through rax, then ret: no frame, no check.
//
//go:noinline
func probe_me_nil(p *node) int { return p.value }

//go:noinline
//go:nosplit
func probe_me_leaf(n uint64) uint64 { return n*3 + 1 }

// Checks for room, but is called where hardly any is left: its first instructions run there, then the stack grows.
//
//go:noinline
func checks_itself(n uint64) uint64 {
	var room [32]uint64
	for i := range room {
		room[i] = n * uint64(i)
	}
	return room[n%32] - n*(n%32)
}

// Uses most of what a chain of functions without checks may use, then calls one more.
//
//go:noinline
//go:nosplit
func fills_the_rest(n uint64) uint64 {
	var room [80]uint64
	for i := range room {
		room[i] = n + uint64(i)
	}
	got := probe_me_leaf(n) + checks_itself(n)
	atomic.AddInt64(&calls, 1)
	for i := range room {
		if room[i] != n+uint64(i) {
			return 0
		}
	}
	return got
}

func fail(format string, args ...interface{}) {
	fmt.Printf("EXIT-FAILURE: "+format+"\n", args...)
	os.Exit(1)
}

// Its frame is large, so that the stack pointer may be anywhere above the guard, down to the lowest place that is allowed.
//
//go:noinline
func deeper(n uint64, depth int) uint64 {
	if got := fills_the_rest(n); got != n*3+1 {
		fail("fills_the_rest gave %d for %d", got, n)
	}
	if depth == 0 {
		return n
	}
	var pad [96]uint64
	pad[n%96] = n
	return deeper(n+1, depth-1) + pad[n%96] - n
}

// A little further down, `steps` times, so that all places above the guard are come to.
//
//go:noinline
func lower(n uint64, depth, steps int) uint64 {
	if steps == 0 {
		return deeper(n, depth)
	}
	return lower(n, depth, steps-1) + uint64(steps) - uint64(steps)
}

//go:noinline
func dereference(p *node) (got int, panicked bool) {
	defer func() {
		if r := recover(); r != nil {
			if r.(runtime.Error).Error() != "runtime error: invalid memory address or nil pointer dereference" {
				fail("panic: %v", r)
			}
			panicked = true
		}
	}()
	atomic.AddInt64(&calls, 1)
	return probe_me_nil(p), false
}

// Its frame is the first on a new stack.
func goroutine(id, rounds int, done *sync.WaitGroup, start *sync.WaitGroup) {
	defer done.Done()
	var kept [24]uint64
	for i := range kept {
		kept[i] = uint64(id*1000 + i)
	}
	start.Wait()
	for i := 0; i < rounds; i++ {
		depth := (i*7 + id) % 24
		if got := lower(uint64(i), depth, id%29); got != uint64(i+depth) {
			fail("deeper gave %d, must be %d", got, i+depth)
		}
		if i%8 == 0 {
			if got, panicked := dereference(&node{value: i}); got != i || panicked {
				fail("dereference gave %d, %v", got, panicked)
			}
			if _, panicked := dereference(nil); !panicked {
				fail("a nil pointer was not noticed")
			}
		}
		runtime.Gosched()
		for j := range kept {
			if kept[j] != uint64(id*1000+j) {
				fail("goroutine %d: its stack was overwritten", id)
			}
		}
	}
}

func main() {
	wait := flag.Bool("wait", false, "")
	hold := flag.Bool("hold", false, "")
	rounds := flag.Int("rounds", 12, "")
	loop := flag.Float64("loop", 0, "")
	flag.Parse()
	input := bufio.NewReader(os.Stdin)
	if *wait {
		fmt.Println("ready")
		input.ReadString('\n')
	}
	deadline := time.Now().Add(time.Duration(*loop * 1e9))
	for batch := 0; batch < 60 || time.Now().Before(deadline); batch++ {
		var done, start sync.WaitGroup
		start.Add(1)
		for id := 0; id < 100; id++ {
			done.Add(1)
			go goroutine(id, *rounds, &done, &start)
		}
		start.Done()
		runtime.GC()
		done.Wait()
	}
	if *hold {
		fmt.Println("done")
		input.ReadString('\n')
	}
	fmt.Printf("calls=%d\nEXIT-SUCCESS\n", atomic.LoadInt64(&calls))
}
