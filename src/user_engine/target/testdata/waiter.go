// Goroutines that compute while main waits for a byte; checks the sums. Prints "exit-success".
package main

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
)

func main() {
	var done atomic.Bool
	var bad atomic.Int64
	var group sync.WaitGroup
	for g := 0; g < 4; g++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for !done.Load() {
				sum := 0
				for i := 0; i < 10000; i++ {
					sum += i
				}
				if sum != 49995000 {
					bad.Add(1)
				}
				runtime.Gosched()
			}
		}()
	}
	fmt.Println("ready")
	var buffer [1]byte
	if n, err := os.Stdin.Read(buffer[:]); n != 1 || err != nil {
		fmt.Println("read", n, err)
		os.Exit(1)
	}
	done.Store(true)
	group.Wait()
	if bad.Load() == 0 {
		fmt.Println("exit-success")
	}
}
