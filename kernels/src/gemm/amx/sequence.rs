//! The one place where the order of tile instructions is written down. Each list is expanded twice:
//! into assembler text by `text!`, and into calls of the software model by the model's `run!`.
//!
//! Tiles 0 to 3 are a 32 × 32 block of sums (upper left, upper right, lower left, lower right), 4
//! and 5 are 16 rows each of the left panel, 6 and 7 are 16 columns each of the right panel. A step
//! is 32 elements along the depth: 2 KiB of each panel.
//!
//! The loads run ahead of the products: when a step begins, tiles 4, 6 and 7 are there already, and
//! each product is followed by the load of the tile whose last reader it was, for the next step.
//! Four products keep the unit busy for 64 cycles and the four loads take 32 from L1 (Intel 64 and
//! IA-32 Architectures Optimization Reference Manual, chapter on Intel AMX), so the loads hide
//! behind the products.

/// Sums that begin at zero.
macro_rules! begin_zero {
    ($expand:ident!($($with:tt)*)) => { $expand! { $($with)*
        [load_rows 4 left] [load 6 right 0] [load 7 right 64]
        [zero 0] [zero 1] [zero 2] [zero 3]
    } };
}

/// Sums that go on from what memory holds.
macro_rules! begin_sums {
    ($expand:ident!($($with:tt)*)) => { $expand! { $($with)*
        [load_rows 4 left] [load 6 right 0]
        [load_sums 0 upper 0]
        [load 7 right 64]
        [load_sums 1 upper 64] [load_sums 2 lower 0] [load_sums 3 lower 64]
    } };
}

/// A step that another one follows.
macro_rules! step {
    ($expand:ident!($($with:tt)*)) => { $expand! { $($with)*
        [dot 0 4 6] [load_rows 5 low] [forth left]
        [dot 1 4 7] [load_rows 4 left] [forth low]
        [dot 2 5 6] [load 6 right 2048]
        [dot 3 5 7] [load 7 right 2112]
        [advance right 2048]
    } };
}

/// The last step, each of whose sums is stored as soon as another product covers the wait.
macro_rules! last {
    ($expand:ident!($($with:tt)*)) => { $expand! { $($with)*
        [dot 0 4 6] [load_rows 5 low]
        [dot 1 4 7] [dot 2 5 6] [dot 3 5 7]
        [store 0 upper 0] [store 1 upper 64] [store 2 lower 0] [store 3 lower 64]
    } };
}

/// A list as assembler text, with the operands that `Tmm::block` names.
macro_rules! text {
    ($([$($op:tt)*])*) => { concat!($(text_of!($($op)*), "\n"),*) };
}

macro_rules! text_of {
    (zero $tile:literal) => {
        concat!("tilezero tmm", $tile)
    };
    (load $tile:literal $from:ident $offset:literal) => {
        concat!("tileloadd tmm", $tile, ", [{", stringify!($from), "} + {two} + ", $offset, "]")
    };
    (load_rows $tile:literal $from:ident) => {
        concat!("tileloadd tmm", $tile, ", [{", stringify!($from), "} + {row}]")
    };
    (forth $pointer:ident) => {
        concat!("add {", stringify!($pointer), "}, {step}")
    };
    (load_sums $tile:literal $from:ident $offset:literal) => {
        concat!("tileloadd tmm", $tile, ", [{", stringify!($from), "} + {pitch} + ", $offset, "]")
    };
    (store $tile:literal $to:ident $offset:literal) => {
        concat!("tilestored [{", stringify!($to), "} + {pitch} + ", $offset, "], tmm", $tile)
    };
    (dot $sums:literal $left:literal $right:literal) => {
        concat!("tdpbf16ps tmm", $sums, ", tmm", $left, ", tmm", $right)
    };
    (advance $pointer:ident $bytes:literal) => {
        concat!("add {", stringify!($pointer), "}, ", $bytes)
    };
}

pub(super) use {begin_sums, begin_zero, last, step, text, text_of};
