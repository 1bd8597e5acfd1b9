use candle_core::{DType, Result, Tensor};
use chandler_kernels::rms_norm::{self, Params};

use crate::buffer::Buffer;
use crate::compare::{DTYPES, near, random, row_threads, suffix};
use crate::emulator::{Program, program};

/// Of the weight's gradient.
const CHUNK_ROWS: usize = 16;

struct Case {
    x: Tensor,
    weight: Tensor,
    dy: Tensor,
    residual: Tensor,
    params: Params,
    rows: usize,
    width: usize,
}

impl Case {
    fn new(rows: usize, width: usize, dtype: DType, unit_offset: bool) -> Result<Self> {
        let of = [rows, width];
        let [x, weight, dy, residual] =
            random(&[&of, &[width], &of, &of], dtype)?.try_into().expect("four");
        let params = Params { eps: 1e-5, unit_offset };
        Ok(Self { x, weight, dy, residual, params, rows, width })
    }

    fn threads(&self) -> usize {
        row_threads(self.width, self.x.dtype(), 512)
    }

    fn forward(&self, program: &Program) -> Result<Tensor> {
        let dtype = self.x.dtype();
        let (x, weight) = (Buffer::of_tensor(&self.x)?, Buffer::of_tensor(&self.weight)?);
        let y = Buffer::unset_of(self.rows * self.width, dtype);
        let kernel = format!("rms_norm_forward_{}", suffix(dtype));
        let launch = program.launch(&kernel, [self.rows, 1, 1], self.threads());
        launch
            .buffer(&x)
            .buffer(&weight)
            .buffer(&y)
            .value(self.width as u32)
            .value(self.params.eps as f32)
            .value(u32::from(self.params.unit_offset))
            .run();
        y.tensor(self.x.dims(), dtype)
    }

    fn forward_add(&self, program: &Program) -> Result<[Tensor; 2]> {
        let dtype = self.x.dtype();
        let [x, added, weight] = [&self.x, &self.residual, &self.weight].map(Buffer::of_tensor);
        let [sum, y] = [0; 2].map(|_| Buffer::unset_of(self.rows * self.width, dtype));
        let kernel = format!("rms_norm_forward_add_{}", suffix(dtype));
        let launch = program.launch(&kernel, [self.rows, 1, 1], self.threads());
        launch
            .buffer(&x?)
            .buffer(&added?)
            .buffer(&weight?)
            .buffer(&sum)
            .buffer(&y)
            .value(self.width as u32)
            .value(self.params.eps as f32)
            .value(u32::from(self.params.unit_offset))
            .run();
        Ok([sum.tensor(self.x.dims(), dtype)?, y.tensor(self.x.dims(), dtype)?])
    }

    fn backward(
        &self,
        program: &Program,
        adds: bool,
        wants_weight: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (dtype, rows, width) = (self.x.dtype(), self.rows, self.width);
        let [x, weight, dy] = [&self.x, &self.weight, &self.dy].map(Buffer::of_tensor);
        let residual = Buffer::of_tensor(&self.residual)?;
        let dx = Buffer::unset_of(rows * width, dtype);
        let chunk_rows = if wants_weight { CHUNK_ROWS } else { 1 };
        let chunks = rows.div_ceil(chunk_rows);
        let partial = wants_weight.then(|| Buffer::unset::<f32>(chunks * width));
        let kernel = format!("rms_norm_backward_{}", suffix(dtype));
        program
            .launch(&kernel, [chunks, 1, 1], self.threads())
            .shared(if wants_weight { 4 * width } else { 0 })
            .buffer(&x?)
            .buffer(&weight?)
            .buffer(&dy?)
            .optional(adds.then_some(&residual))
            .buffer(&dx)
            .optional(partial.as_ref())
            .value(rows as u64)
            .value(width as u32)
            .value(chunk_rows as u32)
            .value(self.params.eps as f32)
            .value(u32::from(self.params.unit_offset))
            .run();
        let dw = match partial {
            None => None,
            Some(partial) => {
                let dw = Buffer::unset::<f32>(width);
                let launch = program.launch("rms_norm_weight_sum", [width.div_ceil(32), 1, 1], 512);
                launch.buffer(&partial).buffer(&dw).value(chunks as u64).value(width as u32).run();
                Some(dw.tensor(&[width], DType::F32)?)
            }
        };
        Ok((dx.tensor(self.x.dims(), dtype)?, dw))
    }
}

fn agrees(rows: usize, width: usize) -> Result<()> {
    let Some(program) = program("rms_norm") else { return Ok(()) };
    for dtype in DTYPES {
        for unit_offset in [false, true] {
            let case = Case::new(rows, width, dtype, unit_offset)?;
            let Case { x, weight, dy, residual, params, .. } = &case;
            near(&case.forward(&program)?, &rms_norm::forward(x, weight, *params)?)?;
            let sums = case.forward_add(&program)?;
            let expected = rms_norm::forward_add(x, residual, weight, *params)?;
            for (sum, expected) in sums.iter().zip(&expected) {
                near(sum, expected)?;
            }
            for wants_weight in [false, true] {
                let (dx, dw) = case.backward(&program, false, wants_weight)?;
                let expected = rms_norm::backward(x, weight, *params, dy, wants_weight)?;
                near(&dx, &expected.0)?;
                assert_eq!(dw.is_some(), wants_weight);
                if let (Some(dw), Some(expected)) = (dw, expected.1) {
                    near(&dw, &expected)?;
                }
                let (dx, _) = case.backward(&program, true, wants_weight)?;
                let expected =
                    rms_norm::backward_add(x, weight, *params, dy, residual, wants_weight)?;
                near(&dx, &expected.0)?;
            }
        }
    }
    Ok(())
}

#[test]
fn rows_of_models() -> Result<()> {
    agrees(1, 1024)?;
    agrees(70, 896)
}

#[test]
fn rows_of_any_width() -> Result<()> {
    for (rows, width) in [(1, 1), (3, 7), (33, 100), (65, 36), (2, 4096 + 8)] {
        agrees(rows, width)?;
    }
    Ok(())
}
