//! The profile in a process of its own, since its counters are the process's.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chandler_kernels::profile::{Op, Row, enable, take, time};

/// The tests take turns.
static TURN: Mutex<()> = Mutex::new(());

fn others(run: impl FnOnce()) -> Option<Row> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    take();
    run();
    enable(false);
    take().into_iter().find(|row| row.op == Op::Other)
}

#[test]
fn an_op_within_an_op_counts_as_part_of_it() {
    let row = others(|| {
        enable(true);
        for _ in 0..3 {
            let _outer = time(Op::Other, 10).moving(4).moving(1);
            let _inner = time(Op::Other, 1000).moving(1000);
            std::thread::sleep(Duration::from_millis(1));
        }
    })
    .expect("it ran");
    assert_eq!((row.calls, row.flops, row.bytes), (3, 30, 15));
    assert!(row.nanoseconds >= 3_000_000, "{row:?}");
}

#[test]
fn ops_that_end_leave_the_thread_as_it_was() {
    let row = others(|| {
        enable(true);
        drop(time(Op::Other, 1));
        let early = || -> Option<()> {
            let _timer = time(Op::Other, 1);
            None
        };
        early();
        let _ = std::panic::catch_unwind(|| {
            let _timer = time(Op::Other, 1);
            panic!("an op that fails");
        });
        drop(time(Op::Other, 1));
    });
    assert_eq!(row.map(|row| row.calls), Some(4));
}

#[test]
fn nothing_is_counted_while_it_is_off() {
    assert_eq!(others(|| drop(time(Op::Other, 1))), None);
    let switched_off_within = others(|| {
        enable(true);
        let timer = time(Op::Other, 1);
        enable(false);
        drop(timer);
        drop(time(Op::Other, 1));
    });
    assert_eq!(switched_off_within.map(|row| row.calls), Some(1));
}

#[test]
fn rows_are_in_the_order_of_all() {
    for (index, op) in Op::ALL.into_iter().enumerate() {
        assert_eq!(op as usize, index, "{}", op.name());
    }
}
