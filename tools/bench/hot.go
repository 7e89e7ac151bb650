// hot.c's protocol for Go: `run nosplit` or `run checked` on stdin, median and minimum ns a call over the chunks and the number
// of calls as the answer. nosplit does not check its stack, checked does: at the entries of both hits run on a private stack.
package main

import (
	"bufio"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"
)

//go:noinline
func nosplit(a, b int) int { return a*b + 1 }

//go:noinline
func inner(a int) int { return a + 1 }

//go:noinline
func checked(a, b int) int { return inner(a) * b }

const chunks = 51

var sink int

func chunk(f func(a, b int) int, count int) float64 {
	start := time.Now()
	sum := 0
	for i := 0; i < count; i++ {
		sum += f(i, 3)
	}
	sink = sum
	return float64(time.Since(start).Nanoseconds()) / float64(count)
}

func main() {
	functions := map[string]func(a, b int) int{"nosplit": nosplit, "checked": checked}
	fmt.Println("ready")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		f := functions[strings.Fields(input.Text())[1]]
		calls := 2000
		count := int(5e6/(chunk(f, 2000)+0.5)) + 20
		var ns []float64
		for i := 0; i < chunks; i++ {
			ns = append(ns, chunk(f, count))
			calls += count
		}
		sort.Float64s(ns)
		fmt.Printf("%.3f %.3f %d\n", ns[chunks/2], ns[0], calls)
	}
}
