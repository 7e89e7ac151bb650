// Go program whose goroutines start with small stacks and grow them by recursion (the runtime copies the stack) while the
// collector runs; entry probes only. The arguments and verdict are those of the other targets.
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

//go:noinline
func probe_me(n uint64, depth int) uint64 {
	if depth == 0 {
		return n
	}
	var pad [16]uint64
	pad[n&15] = n
	return probe_me(n+1, depth-1) + pad[n&15] - n
}

func fail(format string, args ...interface{}) {
	fmt.Printf("EXIT-FAILURE: "+format+"\n", args...)
	os.Exit(1)
}

func goroutine(id, rounds int, deadline time.Time, done *sync.WaitGroup) {
	defer done.Done()
	for i := 0; i < rounds || time.Now().Before(deadline); i++ {
		depth := (i*7 + id) % 300
		if got := probe_me(uint64(i), depth); got != uint64(i+depth) {
			fail("probe_me gave %d, must be %d", got, i+depth)
		}
		atomic.AddInt64(&calls, int64(depth+1))
		if i%50 == 0 {
			runtime.Gosched()
		}
	}
}

func main() {
	wait := flag.Bool("wait", false, "")
	hold := flag.Bool("hold", false, "")
	rounds := flag.Int("rounds", 30, "")
	loop := flag.Float64("loop", 0, "")
	flag.Parse()
	input := bufio.NewReader(os.Stdin)
	if *wait {
		fmt.Println("ready")
		input.ReadString('\n')
	}
	deadline := time.Now().Add(time.Duration(*loop * 1e9))
	for batch := 0; batch < 20 || time.Now().Before(deadline); batch++ {
		var done sync.WaitGroup
		for id := 0; id < 8; id++ {
			done.Add(1)
			go goroutine(id, *rounds, time.Now(), &done)
		}
		runtime.GC()
		done.Wait()
	}
	if *hold {
		fmt.Println("done")
		input.ReadString('\n')
	}
	fmt.Printf("calls=%d\nEXIT-SUCCESS\n", atomic.LoadInt64(&calls))
}
