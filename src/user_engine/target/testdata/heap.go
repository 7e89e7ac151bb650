// Goroutines on a heap of 200 MiB, interrupted by the runtime's own signals. Prints "exit-success".
package main

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	heap := make([][]byte, 200)
	for i := range heap {
		heap[i] = make([]byte, 1<<20)
		heap[i][i] = 1
	}
	var done atomic.Bool
	var group sync.WaitGroup
	for g := 0; g < 2; g++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for n := 0; !done.Load(); n++ {
			}
		}()
	}
	for i := 0; i < 2; i++ { // each preempts every goroutine by SIGURG
		runtime.GC()
	}
	time.Sleep(20 * time.Millisecond)
	fmt.Println("ready")
	var buffer [1]byte
	_, _ = os.Stdin.Read(buffer[:])
	done.Store(true)
	group.Wait()
	runtime.KeepAlive(heap)
	fmt.Println("exit-success")
}
