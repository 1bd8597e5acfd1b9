//! Recorded work.

use candle_core::{DType, Device, Tensor};
use chandler_kernels::decode_attention::{self, Place, Places};
use chandler_kernels::graph::Graph;
use chandler_kernels::{attention, device, gemv, linear, rms_norm};

use crate::support::{gpu, keep_nearly_all, more_than_left, noise};

const NORM: rms_norm::Params = rms_norm::Params { eps: 1e-6, unit_offset: false };
const ATTENTION: attention::Params = attention::Params { scale: 0.35, softcap: None, window: None };

/// Ops as a decode step has them, each with memory of its own: `x [2, 32]` → `[2, 32]`.
struct Step {
    x: Tensor,
    weight: Tensor,
    norm: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Places,
}

impl Step {
    fn new(gpu: &Device, dtype: DType) -> Self {
        let on = |shape: &[usize], seed| noise(shape, seed, dtype).to_device(gpu).unwrap();
        let places = vec![Place { row: 1, len: 150 }, Place { row: 0, len: 7 }];
        Self {
            x: on(&[2, 32], 1),
            weight: on(&[32, 32], 2),
            norm: on(&[32], 3),
            keys: on(&[2, 2, 600, 8], 4),
            values: on(&[2, 2, 600, 8], 5),
            places: Places::new(places, gpu).unwrap().with_room(512),
        }
    }

    fn run(&self, places: &Places) -> candle_core::Result<Tensor> {
        let normed = rms_norm::forward(&self.x, &self.norm, NORM)?;
        let half = self.weight.narrow(0, 0, 16)?;
        let layers = [&self.weight, &half].map(|weight| gemv::Layer { weight, bias: None });
        let products = gemv::forward(&normed, &layers)?;
        let (q, fresh) = (products[0].reshape((2, 4, 8))?, products[1].reshape((2, 2, 8))?);
        decode_attention::store(&self.keys, &fresh, places)?;
        decode_attention::forward(&q, &self.keys, &self.values, places, ATTENTION)?.flatten_from(1)
    }
}

fn bits(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn recorded_ops_do_the_same_with_what_lies_there_then() {
    let Some((_alone, gpu)) = gpu() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let mut step = Step::new(&gpu, dtype);
        let y = Tensor::zeros((2, 32), dtype, &gpu).unwrap();
        step.run(&step.places).unwrap();
        let recorded = Graph::record(&gpu, || y.slice_set(&step.run(&step.places)?, 0, 0)).unwrap();
        let mut graph = recorded.unwrap();
        assert!(bits(&y).iter().all(|value| *value == 0.0), "recording does nothing");
        for (seed, lens) in [(7, [151, 8]), (8, [400, 9])] {
            let list = vec![Place { row: 1, len: lens[0] }, Place { row: 0, len: lens[1] }];
            let now = Places::new(list, &gpu).unwrap();
            step.places.move_to(&now).unwrap();
            let x = noise((2, 32), seed, dtype).to_device(&gpu).unwrap();
            step.x.slice_set(&x, 0, 0).unwrap();
            // SAFETY: `step` and `y` are there.
            #[expect(unsafe_code, reason = "a graph has addresses")]
            unsafe { graph.launch() }.unwrap();
            let found = bits(&y);
            assert_eq!(found, bits(&step.run(&now).unwrap()));
        }
        let beyond = vec![Place { row: 1, len: 513 }, Place { row: 0, len: 1 }];
        assert!(step.places.move_to(&Places::new(beyond, &gpu).unwrap()).is_err());
    }
}

#[test]
fn what_the_host_takes_part_in_is_not_recorded() {
    let Some((_alone, gpu)) = gpu() else { return };
    let used = device::pool(&gpu).unwrap().used;
    let x = Tensor::zeros(8, DType::F32, &gpu).unwrap();
    let brought = || x.slice_set(&Tensor::new(&[1f32; 8], &gpu)?, 0, 0);
    assert!(Graph::record(&gpu, brought).is_err());
    assert!(Graph::record(&gpu, || gpu.synchronize()).is_err());
    assert!(Graph::record(&gpu, || x.to_vec1::<f32>().map(|_| ())).is_err());
    assert!(Graph::record(&gpu, || candle_core::bail!("of the work's own")).is_err());
    // The device is as it was.
    let ones = (&x + 1.0).unwrap();
    assert_eq!(ones.to_vec1::<f32>().unwrap(), [1.0; 8]);
    drop((x, ones));
    gpu.synchronize().unwrap();
    assert_eq!(device::pool(&gpu).unwrap().used, used);
}

/// The library has memory to work in before anything is recorded, and asks for none in the midst of it.
#[test]
fn a_product_is_recorded_without_memory_of_the_librarys_own() {
    let Some((_alone, gpu)) = gpu() else { return };
    let on = |shape: (usize, usize), seed| noise(shape, seed, DType::BF16).to_device(&gpu).unwrap();
    let (x, weight) = (on((24, 64), 1), on((48, 64), 2));
    let y = Tensor::zeros((24, 48), DType::BF16, &gpu).unwrap();
    let product = || linear::forward(&x, &weight, None);
    let expected = bits(&product().unwrap());
    let mut graph = Graph::record(&gpu, || y.slice_set(&product()?, 0, 0)).unwrap().unwrap();
    // SAFETY: all of them are there.
    #[expect(unsafe_code, reason = "a graph has addresses")]
    unsafe { graph.launch() }.unwrap();
    assert_eq!(bits(&y), expected);
}

#[test]
fn memory_of_a_graph_goes_with_it() {
    let Some((_alone, gpu)) = gpu() else { return };
    device::give_back(&gpu).unwrap();
    device::reset_high_water(&gpu).unwrap();
    let before = device::pool(&gpu).unwrap();
    let most = || device::pool(&gpu).unwrap().used_high - before.used;
    // What is gone when the graph comes is not added to it.
    drop(Tensor::zeros(16 << 20, DType::U8, &gpu).unwrap());
    gpu.synchronize().unwrap();
    let x = Tensor::zeros(1 << 20, DType::F32, &gpu).unwrap();
    let more = || x.slice_set(&(&x + 1.0)?, 0, 0);
    let mut graph = Graph::record(&gpu, more).unwrap().unwrap();
    for _ in 0..3 {
        // SAFETY: `x` is there.
        #[expect(unsafe_code, reason = "a graph has addresses")]
        unsafe { graph.launch() }.unwrap();
    }
    assert_eq!(x.get(77).unwrap().to_scalar::<f32>().unwrap(), 3.0);
    let with = device::pool(&gpu).unwrap();
    assert!(with.reserved >= before.reserved + (8 << 20), "{before:?} {with:?}");
    let taken = with.used - before.used;
    assert!(taken >= 8 << 20 && with.reserved >= with.used, "{with:?}");
    assert_eq!(most(), taken.max(16 << 20));
    drop(Tensor::zeros(16 << 20, DType::U8, &gpu).unwrap());
    assert_eq!(most(), taken + (16 << 20));
    drop((x, graph));
    gpu.synchronize().unwrap();
    assert_eq!(device::pool(&gpu).unwrap().used, before.used);
    assert_eq!(most(), taken + (16 << 20));
    device::give_back(&gpu).unwrap();
    let after = device::pool(&gpu).unwrap();
    assert_eq!((after.used, after.reserved), (before.used, before.reserved));
}

#[test]
fn a_graph_gets_what_a_pool_keeps() {
    let Some((_alone, gpu)) = gpu() else { return };
    device::give_back(&gpu).unwrap();
    let x = Tensor::zeros(more_than_left() / 4, DType::F32, &gpu).unwrap();
    let more = || x.slice_set(&(&x + 1.0)?, 0, 0);
    let mut graph = Graph::record(&gpu, more).unwrap().unwrap();
    // Less is left than the sums take.
    keep_nearly_all(&gpu);
    // SAFETY: `x` is there.
    #[expect(unsafe_code, reason = "a graph has addresses")]
    unsafe { graph.launch() }.unwrap();
    assert_eq!(x.get(77).unwrap().to_scalar::<f32>().unwrap(), 1.0);
    drop(graph);
    device::give_back(&gpu).unwrap();
}
