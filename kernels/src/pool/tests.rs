//! Forks from one and several threads, nested, panicking and empty.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use super::Pool;

/// Each task of a fork counted.
fn counts(pool: &Pool, tasks: usize) -> Vec<usize> {
    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool.run(tasks, |index| {
        counts[index].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_task_runs_exactly_once() {
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(threads).unwrap();
        assert_eq!(pool.threads(), threads);
        for tasks in [0, 1, 2, 3, 7, 100] {
            assert_eq!(counts(&pool, tasks), vec![1; tasks], "{threads} threads");
        }
    }
}

#[test]
fn many_forks_in_a_row_lose_nothing() {
    let pool = Pool::new(4).unwrap();
    for fork in 0..20_000 {
        let sum = AtomicUsize::new(0);
        let tasks = 2 + fork % 5;
        pool.run(tasks, |index| {
            sum.fetch_add(index + 1, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), tasks * (tasks + 1) / 2, "fork {fork}");
    }
}

#[test]
fn tasks_really_run_at_the_same_time() {
    let pool = Pool::new(2).unwrap();
    // Each task waits for the other: one thread alone would never return.
    let barrier = Barrier::new(2);
    pool.run(2, |_| {
        barrier.wait();
    });
}

#[test]
fn sleeping_workers_wake_up_for_a_fork() {
    let pool = Pool::new(2).unwrap();
    // Until the worker has given up spinning, which its count of sleepers shows.
    while pool.shared.sleepers() == 0 {
        std::thread::yield_now();
    }
    let barrier = Barrier::new(2);
    pool.run(2, |_| {
        barrier.wait();
    });
}

#[test]
fn a_fork_inside_a_task_runs_inline() {
    let pool = Pool::new(2).unwrap();
    let inner = AtomicUsize::new(0);
    pool.run(4, |_| {
        let here = std::thread::current().id();
        pool.run(3, |_| {
            assert_eq!(std::thread::current().id(), here);
            inner.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(inner.into_inner(), 12);
}

#[test]
fn forks_of_several_threads_do_not_disturb_each_other() {
    let pool = Arc::new(Pool::new(3).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    assert_eq!(counts(&pool, 9), vec![1; 9]);
                }
            });
        }
    });
}

#[test]
fn a_panic_in_a_task_reaches_the_caller_and_the_pool_goes_on() {
    let pool = Pool::new(2).unwrap();
    for culprit in [0, 1] {
        let barrier = Barrier::new(2);
        let caller = std::thread::current().id();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(2, |_| {
                barrier.wait();
                let on_caller = std::thread::current().id() == caller;
                assert!(on_caller != (culprit == 0), "on purpose");
            });
        }));
        let payload = outcome.unwrap_err();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"on purpose"));
        assert_eq!(counts(&pool, 5), vec![1; 5]);
    }
}

#[test]
fn chunks_cover_the_slice_once() {
    let pool = Pool::new(3).unwrap();
    for len in [0, 1, 4, 5, 17] {
        let mut data = vec![0; len];
        pool.run_chunks(&mut data, 4, |index, chunk| {
            for (offset, element) in chunk.iter_mut().enumerate() {
                *element += index * 4 + offset + 1;
            }
        });
        assert_eq!(data, (1..=len).collect::<Vec<_>>());
    }
}

#[test]
fn configuring_another_size_than_the_running_one_is_an_error() {
    let running = Pool::global().threads();
    assert!(Pool::configure(running).is_ok());
    let error = Pool::configure(running + 1).unwrap_err();
    assert_eq!((error.running, error.asked), (running, running + 1));
}

#[test]
fn an_override_replaces_the_global_pool_inside_its_closure() {
    let pool = Arc::new(Pool::new(5).unwrap());
    Pool::with(&pool, || Pool::current(|current| assert_eq!(current.threads(), 5)));
    Pool::current(|current| assert!(std::ptr::eq(current, Pool::global())));
}
