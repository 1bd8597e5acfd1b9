use candle_core::{DType, Result, Tensor};
use chandler_kernels::adamw::sum_of_squares;

use crate::adamw::places;
use crate::buffer::Buffer;
use crate::compare::{random, suffix};
use crate::emulator::{Launch, Program, program};

/// The squares of `tensors`, of one dtype, by chunk.
fn squares(program: &Program, tensors: &[Tensor]) -> Result<Vec<f64>> {
    let values: Vec<Buffer> = tensors.iter().map(Buffer::of_tensor).collect::<Result<_>>()?;
    let elements: Vec<usize> = tensors.iter().map(Tensor::elem_count).collect();
    let table: Vec<[u64; 2]> =
        values.iter().zip(&elements).map(|(v, n)| [v.address(), *n as u64]).collect();
    let places = places(&elements);
    let partials = Buffer::unset::<f64>(places.len());
    let kernel = format!("norm_squares_{}", suffix(tensors[0].dtype()));
    let (table, list) = (Buffer::of(&table), Buffer::of(&places));
    let launch = program.launch(&kernel, [places.len(), 1, 1], 256);
    let launch = launch.buffer(&table).buffer(&list).buffer(&partials);
    values.iter().fold(launch, Launch::reaches).run();
    Ok(partials.values())
}

fn clipped(program: &Program, partials: &[f64], max_norm: f64) -> (f64, f64, f32) {
    let (sum, norm, scale, halted) = clipped_with(program, partials, &[], max_norm, 0);
    assert_eq!(halted, 0);
    (sum, norm, scale)
}

/// Sum, norm, scale, and whether nothing moves any more.
fn clipped_with(
    program: &Program,
    partials: &[f64],
    losses: &[f64],
    max_norm: f64,
    halted: u32,
) -> (f64, f64, f32, u32) {
    let [from, sum, norm] =
        [Buffer::of(partials), Buffer::unset::<f64>(1), Buffer::unset::<f64>(1)];
    let scale = Buffer::unset::<f32>(1);
    let launch = program.launch("norm_total", [1; 3], 256);
    launch.buffer(&from).value(partials.len() as u32).buffer(&sum).run();
    let launch = program.launch("norm_clip", [1; 3], 1);
    let halted = Buffer::of(&[halted]);
    // Each of them is the first of two numbers.
    let losses: Vec<Buffer> = losses.iter().map(|loss| Buffer::of(&[*loss, f64::NAN])).collect();
    let places: Vec<u64> = losses.iter().map(Buffer::address).chain([0]).collect();
    let places = Buffer::of(&places);
    let launch = launch.buffer(&sum).buffer(&places).value(losses.len() as u32).value(max_norm);
    let launch = launch.buffer(&halted).buffer(&norm).buffer(&scale);
    losses.iter().fold(launch, Launch::reaches).run();
    (sum.values()[0], norm.values()[0], scale.values()[0], halted.values()[0])
}

#[test]
fn the_norm_of_many_tensors() -> Result<()> {
    let Some(program) = program("norm") else { return Ok(()) };
    let sizes = [1, 7, 8192, 8193, 30_011];
    let shapes: Vec<&[usize]> = sizes.iter().map(std::slice::from_ref).collect();
    let mut partials = Vec::new();
    let mut expected = 0.0;
    for dtype in [DType::F32, DType::BF16] {
        let tensors = random(&shapes, dtype)?;
        partials.extend(squares(&program, &tensors)?);
        for tensor in &tensors {
            expected += sum_of_squares(tensor)?;
        }
    }
    for max_norm in [1.0, 1e9, 0.0] {
        let (sum, norm, scale) = clipped(&program, &partials, max_norm);
        assert!((sum / expected - 1.0).abs() < 1e-12, "{sum}, not {expected}");
        assert_eq!(norm, sum.sqrt());
        let factor = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        assert_eq!(scale, factor as f32);
    }
    Ok(())
}

/// Squares that f32 cannot hold.
#[test]
fn sizes_that_f32_cannot_square() -> Result<()> {
    let Some(program) = program("norm") else { return Ok(()) };
    for magnitude in [1e-30, 1e30] {
        let tensor = (random(&[&[1000]], DType::F32)?.remove(0) * magnitude)?;
        let partials = squares(&program, std::slice::from_ref(&tensor))?;
        let (sum, ..) = clipped(&program, &partials, 1.0);
        assert!((sum / sum_of_squares(&tensor)? - 1.0).abs() < 1e-12);
    }
    Ok(())
}

/// What is no number is kept in mind, and nothing moves from then on.
#[test]
fn a_number_that_is_none_halts() {
    let Some(program) = program("norm") else { return };
    let (bad, good) = ([f64::NAN, f64::INFINITY], [4.0, 5.0]);
    for (partials, losses, before, halts) in [
        (&good, &[][..], 0, false),
        (&good, &[1e300, 2.0], 0, false),
        (&good, &[1.0, f64::NAN], 0, true),
        (&good, &[f64::INFINITY, 1.0, 2.0], 0, true),
        (&bad, &[1.0], 0, true),
        (&[f64::INFINITY, 0.0], &[], 0, true),
        (&good, &[1.0], 1, true),
    ] {
        for max_norm in [1.0, 0.0] {
            let (_, _, scale, halted) = clipped_with(&program, partials, losses, max_norm, before);
            assert_eq!((halted, scale.is_nan()), (u32::from(halts), halts), "{partials:?}");
        }
    }
}
