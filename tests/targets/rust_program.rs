// Case 65: a Rust program: its own calling convention, panics that unwind through probed functions, threads. It follows target.h.
use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

static CALLS: AtomicU64 = AtomicU64::new(0);

#[no_mangle]
#[inline(never)]
pub fn probe_me(words: &[u64], name: &str, scale: f64) -> Option<(u64, String)> {
    CALLS.fetch_add(1, Ordering::Relaxed);
    let sum = words.iter().try_fold(0u64, |sum, word| sum.checked_add(*word))?;
    Some(((sum as f64 * scale) as u64, format!("{name}-{sum}")))
}

#[no_mangle]
#[inline(never)]
pub fn probe_me_panics(depth: u64) -> u64 {
    CALLS.fetch_add(1, Ordering::Relaxed);
    if depth == 0 {
        std::panic::resume_unwind(Box::new(7u64));
    }
    std::hint::black_box(probe_me_panics(depth - 1)) + 1
}

fn one_round(n: u64) {
    assert_eq!(probe_me(&[n, 2, 3], "abc", 2.0), Some(((n + 5) * 2, format!("abc-{}", n + 5))));
    assert_eq!(probe_me(&[u64::MAX, 1], "abc", 2.0), None);
    let caught = std::panic::catch_unwind(|| probe_me_panics(n % 9)).unwrap_err();
    assert_eq!(*caught.downcast::<u64>().unwrap(), 7);
}

fn line(what: &str) {
    println!("{what}");
    std::io::stdout().flush().unwrap();
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let value = |name: &str| words.iter().position(|w| w == name).map(|i| words[i + 1].parse::<f64>().unwrap());
    if words.iter().any(|w| w == "--wait") {
        line("ready");
    }
    let end = value("--loop").map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    let rounds = value("--rounds").unwrap_or(500.0) as u64;
    let threads: Vec<_> = (0..2u64)
        .map(|id| {
            std::thread::spawn(move || {
                let mut round = 0;
                while end.map_or(round < rounds, |end| Instant::now() < end) {
                    one_round(round * 2 + id);
                    round += 1;
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    if words.iter().any(|w| w == "--hold") {
        line("done");
    }
    println!("calls={}\nEXIT-SUCCESS", CALLS.load(Ordering::Relaxed));
}
