use candle_core::{DType, Result, Tensor};
use chandler_kernels::activation::{self, Activation};

use crate::buffer::Buffer;
use crate::compare::{DTYPES, near, random, suffix, vector};
use crate::emulator::{Launch, Program, program};

const KINDS: [(u32, Activation); 3] =
    [(0, Activation::Silu), (1, Activation::GeluTanh), (2, Activation::GeluErf)];

fn blocks(elements: usize, dtype: DType) -> [usize; 3] {
    [elements.div_ceil(256 * vector(dtype)), 1, 1]
}

fn forward(program: &Program, gate: &Tensor, up: &Tensor, kind: u32) -> Result<Tensor> {
    let (elements, dtype) = (gate.elem_count(), gate.dtype());
    let [gate_buffer, up_buffer] = [Buffer::of_tensor(gate)?, Buffer::of_tensor(up)?];
    let y = Buffer::unset_of(elements, dtype);
    let kernel = format!("activation_forward_{}", suffix(dtype));
    let launch = program.launch(&kernel, blocks(elements, dtype), 256);
    launch
        .buffer(&gate_buffer)
        .buffer(&up_buffer)
        .buffer(&y)
        .value(elements as u64)
        .value(kind)
        .run();
    y.tensor(gate.dims(), dtype)
}

/// `[gated, d_gate, d_up]`, or without the first.
fn backward(program: &Program, inputs: &[Tensor], kind: u32, again: bool) -> Result<Vec<Tensor>> {
    let (elements, dtype) = (inputs[0].elem_count(), inputs[0].dtype());
    let buffers: Vec<Buffer> = inputs.iter().map(Buffer::of_tensor).collect::<Result<_>>()?;
    let outputs = [(); 3].map(|()| Buffer::unset_of(elements, dtype));
    let kernel = format!("activation_backward_{}", suffix(dtype));
    let launch = program.launch(&kernel, blocks(elements, dtype), 256);
    let launch = buffers.iter().fold(launch, Launch::buffer);
    launch
        .buffer(&outputs[1])
        .buffer(&outputs[2])
        .optional(again.then_some(&outputs[0]))
        .value(elements as u64)
        .value(kind)
        .run();
    let wanted = &outputs[usize::from(!again)..];
    wanted.iter().map(|output| output.tensor(inputs[0].dims(), dtype)).collect()
}

/// With gates in (−15, 15).
fn agrees(rows: usize, width: usize) -> Result<()> {
    let Some(program) = program("activation") else { return Ok(()) };
    let shape = [rows, width];
    for dtype in DTYPES {
        let mut inputs = random(&[&shape, &shape, &shape], dtype)?;
        inputs[0] = (&inputs[0] * 15.0)?;
        let [gate, up, dy] = [&inputs[0], &inputs[1], &inputs[2]];
        for (kind, activation) in KINDS {
            near(&forward(&program, gate, up, kind)?, &activation::forward(gate, up, activation)?)?;
            let (gated, d_gate, d_up) = activation::backward_with_output(gate, up, activation, dy)?;
            let expected = [gated, d_gate, d_up];
            for again in [true, false] {
                let got = backward(&program, &inputs, kind, again)?;
                for (got, expected) in got.iter().zip(&expected[usize::from(!again)..]) {
                    near(got, expected)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn any_number_of_elements() -> Result<()> {
    for (rows, width) in [(1, 1), (3, 5), (7, 300), (5, 1536)] {
        agrees(rows, width)?;
    }
    Ok(())
}

#[test]
fn far_from_zero_the_gate_is_open_or_shut() -> Result<()> {
    let Some(program) = program("activation") else { return Ok(()) };
    let gate = [60f32, -60.0, 1e4, -1e4, 1e19, -1e19, 1e30, -1e30, f32::MAX, f32::MIN, f32::NAN];
    let gate = Tensor::new(&gate, &candle_core::Device::Cpu)?;
    let one = gate.ones_like()?;
    for (kind, _) in KINDS {
        let value = forward(&program, &gate, &one, kind)?.to_vec1::<f32>()?;
        let inputs = [gate.clone(), one.clone(), one.clone()];
        let slope = backward(&program, &inputs, kind, false)?.remove(0).to_vec1::<f32>()?;
        for (at, x) in gate.to_vec1::<f32>()?.into_iter().enumerate() {
            let (value, slope) = (value[at], slope[at]);
            if x.is_nan() {
                assert!(value.is_nan() && slope.is_nan());
            } else if x > 0.0 {
                assert_eq!((value, slope), (x, 1.0));
            } else {
                assert!(value.abs() < 1e-15 * 60.0 && slope.abs() < 1e-20, "{x}: {value} {slope}");
            }
        }
    }
    Ok(())
}
