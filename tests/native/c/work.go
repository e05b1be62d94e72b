package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
)

func deep(n int) int {
	var frame [64]int
	frame[n%64] = n
	if n == 0 {
		return 0
	}
	return deep(n-1) + frame[n%64]
}

func fault() (text string) {
	defer func() { text = fmt.Sprint(recover()) }()
	var none *[4]int
	return fmt.Sprint(none[2])
}

func main() {
	var group sync.WaitGroup
	var lock sync.Mutex
	counts := map[string]int{}
	for i := 0; i < 200; i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			garbage := []string{}
			for j := 0; j < 50; j++ {
				garbage = append(garbage, strings.Repeat("x", j*10))
			}
			lock.Lock()
			counts[fmt.Sprint("k", i%7)] += len(garbage[i%50]) + deep(2000)
			lock.Unlock()
		}(i)
		if i%50 == 0 {
			runtime.GC()
		}
	}
	group.Wait()
	keys := []string{}
	for key := range counts {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		fmt.Println(key, counts[key])
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	syscall.Kill(os.Getpid(), syscall.SIGUSR1)
	fmt.Println(<-signals)
	out, err := exec.Command("sh", "-c", "echo from a child; exit 3").Output()
	fmt.Printf("%q %v\n", out, err)
	fmt.Println(fault())
	time.Sleep(time.Millisecond)
	os.Exit(4)
}
