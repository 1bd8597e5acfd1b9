//! Attention of long documents, which cuDNN computes where it is installed; on the stand-in, its stand-in.
#![expect(unsafe_code, reason = "asks the stand-in")]

use std::io::Write;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Tensor};
use chandler_kernels::attention::{self, Params};
use chandler_kernels::device::{Trials, set_trials};
use chandler_kernels::rehearsal::Rehearsal;

use crate::support::{check_close, gpu, noise, tolerance};

/// What the stand-in's library has to say of itself; `None` on a GPU, whose library says nothing.
struct StandIn(libloading::Library);

impl StandIn {
    fn find() -> Option<Self> {
        // SAFETY: the program has loaded the same library already.
        let library = unsafe { libloading::Library::new("libcudnn.so.9") }.ok()?;
        // SAFETY: the stand-in's functions are of these types.
        unsafe { library.get::<extern "C" fn() -> i32>(b"stand_in_cudnn_runs") }.ok()?;
        Some(Self(library))
    }

    /// How often a plan was executed.
    fn runs(&self) -> i32 {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn() -> i32>(b"stand_in_cudnn_runs") }.unwrap()()
    }

    /// Has the library be wrong from now on: 1 is without masks, 2 in another order every time, 3 does
    /// not start, 4 does nothing that was planned, 5 wants a workspace of zeros, 6 reads the row behind
    /// the last document, 7 writes it, 0 is not.
    fn spoil(&self, what: i32) {
        // SAFETY: as above.
        unsafe { self.0.get::<extern "C" fn(i32)>(b"stand_in_cudnn_spoil") }.unwrap()(what);
    }
}

/// Has fresh memory of the stand-in be full of this byte.
fn fill_fresh_memory_with(byte: i32) {
    // SAFETY: the program has loaded the same library already.
    let driver = unsafe { libloading::Library::new("libcuda.so.1") }.unwrap();
    // SAFETY: the stand-in's function is of this type.
    unsafe { driver.get::<extern "C" fn(i32)>(b"stand_in_fresh") }.unwrap()(byte);
}

/// Three long documents, two of them next to each other, and short ones.
const BOUNDARIES: [u32; 6] = [0, 520, 560, 1080, 1600, 1607];

struct Case {
    inputs: Vec<Tensor>,
    params: Params,
}

impl Case {
    fn new([heads, kv_heads, dim]: [usize; 3], params: Params) -> Self {
        let tokens = BOUNDARIES[BOUNDARIES.len() - 1] as usize;
        let of = |heads, seed| noise((tokens, heads, dim), seed, DType::BF16);
        let inputs = vec![of(heads, 1), of(kv_heads, 2), of(kv_heads, 3), of(heads, 4)];
        Self { inputs, params }
    }

    /// The output and the gradients, as a training step has them.
    fn run(&self, device: &Device) -> Result<Vec<Tensor>> {
        let there: Vec<Tensor> =
            self.inputs.iter().map(|x| x.to_device(device)).collect::<Result<_>>()?;
        let [q, k, v, dy] = [&there[0], &there[1], &there[2], &there[3]];
        let (y, kept) = attention::forward_kept(q, k, v, &BOUNDARIES, self.params)?;
        let kept = kept.with_output(&y, dy)?;
        let [dq, dk, dv] = attention::backward_kept(q, k, v, &BOUNDARIES, self.params, dy, &kept)?;
        Ok(vec![y, dq, dk, dv])
    }

    #[track_caller]
    fn check(&self, gpu: &Device) {
        let expected = self.run(&Device::Cpu).unwrap();
        for (found, expected) in self.run(gpu).unwrap().iter().zip(&expected) {
            check_close(found, expected, 2.0 * tolerance(DType::BF16));
        }
    }
}

const PLAIN: Params = Params { scale: 0.35, softcap: None, window: None };

#[test]
fn are_right_beside_short_ones() {
    let Some((_alone, gpu)) = gpu() else { return };
    let library = StandIn::find();
    let before = library.as_ref().map(StandIn::runs);
    let window = Params { window: Some(100), ..PLAIN };
    for (heads, params) in [
        ([2, 1, 16], PLAIN),
        ([2, 2, 16], window),
        ([2, 1, 48], Params { softcap: Some(1.5), ..window }),
    ] {
        Case::new(heads, params).check(&gpu);
    }
    if let (Some(library), Some(before)) = (library, before) {
        // Two runs of documents, each by a plan of its own that is tried twice before it is used, in
        // both passes of three cases.
        assert_eq!(library.runs() - before, 3 * 2 * 2 * 3);
    }
}

#[test]
fn have_the_same_bits_twice() {
    let Some((_alone, gpu)) = gpu() else { return };
    let case = Case::new([3, 1, 16], PLAIN);
    let bits = |tensors: Vec<Tensor>| -> Vec<Vec<f32>> {
        let flat = |x: &Tensor| {
            let x = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            x.flatten_all()?.to_vec1()
        };
        tensors.iter().map(|x| flat(x).unwrap()).collect()
    };
    assert!(bits(case.run(&gpu).unwrap()) == bits(case.run(&gpu).unwrap()));
}

/// A library that is wrong is left alone, and the run goes on with chandler's own kernels.
#[test]
fn are_not_left_to_a_library_that_is_wrong() {
    let Some((_alone, gpu)) = gpu() else { return };
    let Some(library) = StandIn::find() else { return };
    for (spoiled, heads) in [(1, [4, 1, 16]), (2, [4, 2, 16]), (4, [4, 4, 16])] {
        library.spoil(spoiled);
        Case::new(heads, PLAIN).check(&gpu);
        let tried = library.runs();
        // Not tried again, except what went well: forward passes have nothing to be summed in order.
        Case::new(heads, PLAIN).check(&gpu);
        let again = library.runs() - tried;
        assert_eq!(again, if spoiled == 2 { 2 } else { 0 }, "{spoiled}");
        library.spoil(0);
    }
}

/// What a library must not count on is no number when it is compared, even where memory is fresh and zero.
#[test]
fn are_not_left_to_a_library_that_counts_on_what_lies_around() {
    let Some((_alone, gpu)) = gpu() else { return };
    let Some(library) = StandIn::find() else { return };
    fill_fresh_memory_with(0);
    for (spoiled, heads) in [(5, [5, 1, 16]), (6, [5, 5, 16]), (7, [6, 1, 16])] {
        library.spoil(spoiled);
        let before = library.runs();
        Case::new(heads, PLAIN).check(&gpu);
        // Two plans of each pass were tried, and none was used.
        assert_eq!(library.runs() - before, 2 * 2 * 2, "{spoiled}");
        library.spoil(0);
    }
    fill_fresh_memory_with(0xff);
}

/// Remembers what was tried and what ended well, and may have nothing more tried.
#[derive(Debug, Default)]
struct Remembered {
    begun: Mutex<Vec<String>>,
    ended: Mutex<Vec<String>>,
    refuses: bool,
}

impl Trials for Remembered {
    fn begin(&self, what: &str) -> bool {
        self.begun.lock().unwrap().push(what.to_owned());
        !self.refuses
    }

    fn end(&self, what: &str) {
        self.ended.lock().unwrap().push(what.to_owned());
    }
}

/// A plan is on trial while it is compared, and one that ended processes is not tried.
#[test]
fn are_on_trial_before_they_are_used() {
    let Some((_alone, gpu)) = gpu() else { return };
    let Some(library) = StandIn::find() else { return };
    for refuses in [false, true] {
        let trials = Arc::new(Remembered { refuses, ..Remembered::default() });
        set_trials(Some(trials.clone()));
        let before = library.runs();
        Case::new([7, 1 + 6 * usize::from(refuses), 16], PLAIN).check(&gpu);
        set_trials(None);
        let runs = library.runs() - before;
        let (begun, ended) = (trials.begun.lock().unwrap(), trials.ended.lock().unwrap());
        // Two plans of each pass, each of which is run twice before it is used.
        assert_eq!(begun.len(), 4, "{begun:?}");
        assert!(begun[0].starts_with("cuDNN 9.") && begun[0].contains(" on "), "{begun:?}");
        assert_eq!(*ended, if refuses { vec![] } else { begun.clone() });
        assert_eq!(runs, if refuses { 0 } else { 2 * 2 * 3 });
    }
}

/// A library that is there and does not start is as none.
#[test]
fn are_right_where_the_library_does_not_start() {
    let Some((_alone, _)) = gpu() else { return };
    let Some(library) = StandIn::find() else { return };
    library.spoil(3);
    // Another stream, for which nothing was started.
    let other = chandler_kernels::device::open_cuda(0, None).unwrap();
    let before = library.runs();
    Case::new([2, 1, 16], PLAIN).check(&other);
    assert_eq!(library.runs(), before);
    library.spoil(0);
}

/// What attention takes at a time is in the plan.
#[test]
fn take_what_is_planned() {
    let Some((_alone, gpu)) = gpu() else { return };
    if std::env::var_os("CHANDLER_STAND_IN_LATE").is_some() {
        // What was freed is counted until the device has come so far; a card's pool serves from it at once.
        std::io::stderr().write_all(b"SKIPPED: the late stand-in frees late\n").unwrap();
        return;
    }
    let heads = [2, 1, 32];
    let case = Case::new(heads, PLAIN);
    case.run(&gpu).unwrap();
    let there: Vec<Tensor> = case.inputs.iter().map(|x| x.to_device(&gpu).unwrap()).collect();
    let [q, k, v, dy] = [&there[0], &there[1], &there[2], &there[3]];
    let (y, kept) = attention::forward_kept(q, k, v, &BOUNDARIES, PLAIN).unwrap();
    let kept = kept.with_output(&y, dy).unwrap();
    drop(y);
    gpu.synchronize().unwrap();
    chandler_kernels::device::reset_high_water(&gpu).unwrap();
    let used = || chandler_kernels::device::pool(&gpu).unwrap();
    let before = used().used - kept.bytes() as u64;
    let gradients = attention::backward_kept(q, k, v, &BOUNDARIES, PLAIN, dy, &kept).unwrap();
    let results: usize = gradients.iter().map(|x| 2 * x.elem_count()).sum();
    let taken = used().used_high - before - results as u64;
    let mut pool = Rehearsal::of_gpu();
    let lengths: Vec<usize> =
        BOUNDARIES.windows(2).map(|pair| (pair[1] - pair[0]) as usize).collect();
    attention::rehearse_backward(&mut pool, heads, &lengths, PLAIN, DType::BF16);
    let planned = pool.take_passing().attention_backward as u64;
    assert!(taken <= planned && planned - taken < 1 << 20, "{taken} of {planned}");
}
