use candle_core::{DType, Result, Tensor};
use chandler_kernels::rms_norm::Params;
use chandler_kernels::rope;

use crate::buffer::Buffer;
use crate::compare::{DTYPES, near, random, suffix, vector};
use crate::emulator::{Program, program};

/// Rows of a block, with the weight's gradient and without.
const CHUNK_ROWS: usize = 1024;
const ROWS: usize = 64;
const PARAMS: Params = Params { eps: 1e-4, unit_offset: true };

struct Case {
    /// Of `rope` and `rope_normed`.
    programs: [std::sync::Arc<Program>; 2],
    x: Tensor,
    dy: Tensor,
    /// Elements from token to token.
    stride: usize,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
}

impl Case {
    /// After the elements of a token lie `beside` others, as in a product for queries, keys and values
    /// together.
    fn new(
        programs: [std::sync::Arc<Program>; 2],
        [tokens, heads, head_dim]: [usize; 3],
        beside: usize,
        dtype: DType,
    ) -> Result<Self> {
        let stride = beside + heads * head_dim;
        let of = [tokens, heads, head_dim];
        let [x, dy, weight] = random(&[&of, &of, &[head_dim]], dtype)?.try_into().expect("three");
        let angles = (random(&[&[tokens, head_dim / 2]], DType::F32)?.remove(0) * 3.0)?;
        Ok(Self { programs, x, dy, stride, weight, cos: angles.cos()?, sin: angles.sin()? })
    }

    fn sizes(&self) -> [usize; 3] {
        self.x.dims3().map(|(n, h, d)| [n, h, d]).expect("three")
    }

    fn kernel(&self, name: &str) -> String {
        format!("rope_{name}_{}", suffix(self.x.dtype()))
    }

    /// `x` at the beginning of each token of `stride` elements.
    fn strided(&self, x: &Tensor) -> Result<Buffer> {
        let [tokens, heads, head_dim] = self.sizes();
        let flat = x.reshape((tokens, heads * head_dim))?;
        let beside = self.stride - heads * head_dim;
        let filler = Tensor::full(f64::NAN, (tokens, beside), x.device())?.to_dtype(x.dtype())?;
        if beside == 0 {
            return Buffer::of_tensor(&flat);
        }
        Buffer::of_tensor(&Tensor::cat(&[&flat, &filler], 1)?)
    }

    fn rotate(&self, x: &Tensor, direction: f32) -> Result<Tensor> {
        let [tokens, heads, head_dim] = self.sizes();
        let dtype = x.dtype();
        let (from, to) = (self.strided(x)?, Buffer::unset_of(x.elem_count(), dtype));
        let (cos, sin) = (Buffer::of_tensor(&self.cos)?, Buffer::of_tensor(&self.sin)?);
        let items = (heads * head_dim / 2).div_ceil(vector(dtype));
        let threads = items.next_multiple_of(32).clamp(32, 256);
        let launch = self.programs[0].launch(&self.kernel("rotate"), [tokens, 1, 1], threads);
        launch
            .buffer(&from)
            .buffer(&cos)
            .buffer(&sin)
            .buffer(&to)
            .value(heads as u32)
            .value(head_dim as u32)
            .value(self.stride as u64)
            .value((heads * head_dim) as u64)
            .value(direction)
            .run();
        to.tensor(x.dims(), dtype)
    }

    fn normed_forward(&self) -> Result<Tensor> {
        let [tokens, heads, head_dim] = self.sizes();
        let dtype = self.x.dtype();
        let (x, y) = (self.strided(&self.x)?, Buffer::unset_of(self.x.elem_count(), dtype));
        let weight = Buffer::of_tensor(&self.weight)?;
        let (cos, sin) = (Buffer::of_tensor(&self.cos)?, Buffer::of_tensor(&self.sin)?);
        let blocks = [(tokens * heads).div_ceil(ROWS), 1, 1];
        let launch = self.programs[1].launch(&self.kernel("normed_forward"), blocks, 256);
        launch
            .buffer(&x)
            .buffer(&weight)
            .buffer(&cos)
            .buffer(&sin)
            .buffer(&y)
            .value((tokens * heads) as u32)
            .value(heads as u32)
            .value(head_dim as u32)
            .value(self.stride as u64)
            .value((heads * head_dim) as u64)
            .value(ROWS as u32)
            .value(PARAMS.eps as f32)
            .value(u32::from(PARAMS.unit_offset))
            .run();
        y.tensor(self.x.dims(), dtype)
    }

    fn normed_backward(&self, wants_weight: bool) -> Result<(Tensor, Option<Tensor>)> {
        let [tokens, heads, head_dim] = self.sizes();
        let dtype = self.x.dtype();
        let (x, dy) = (self.strided(&self.x)?, Buffer::of_tensor(&self.dy)?);
        let d_x = Buffer::unset_of(self.x.elem_count(), dtype);
        let weight = Buffer::of_tensor(&self.weight)?;
        let (cos, sin) = (Buffer::of_tensor(&self.cos)?, Buffer::of_tensor(&self.sin)?);
        let chunk_rows = if wants_weight { CHUNK_ROWS } else { ROWS };
        let chunks = (tokens * heads).div_ceil(chunk_rows);
        let partial = wants_weight.then(|| Buffer::unset::<f32>(chunks * head_dim));
        let launch = self.programs[1].launch(&self.kernel("normed_backward"), [chunks, 1, 1], 256);
        launch
            .shared(if wants_weight { 32 * head_dim } else { 0 })
            .buffer(&x)
            .buffer(&weight)
            .buffer(&cos)
            .buffer(&sin)
            .buffer(&dy)
            .buffer(&d_x)
            .optional(partial.as_ref())
            .value((tokens * heads) as u32)
            .value(heads as u32)
            .value(head_dim as u32)
            .value(self.stride as u64)
            .value((heads * head_dim) as u64)
            .value((heads * head_dim) as u64)
            .value(chunk_rows as u32)
            .value(PARAMS.eps as f32)
            .value(u32::from(PARAMS.unit_offset))
            .run();
        let dw = match partial {
            None => None,
            Some(partial) => {
                let dw = Buffer::unset::<f32>(head_dim);
                let blocks = [head_dim.div_ceil(32), 1, 1];
                let launch = self.programs[1].launch("rope_normed_weight_sum", blocks, 512);
                launch
                    .buffer(&partial)
                    .buffer(&dw)
                    .value(chunks as u64)
                    .value(head_dim as u32)
                    .run();
                Some(dw.tensor(&[head_dim], DType::F32)?)
            }
        };
        Ok((d_x.tensor(self.x.dims(), dtype)?, dw))
    }
}

fn agrees(sizes: [usize; 3], beside: usize) -> Result<()> {
    let Some(rotation) = program("rope") else { return Ok(()) };
    let Some(normed) = program("rope_normed") else { return Ok(()) };
    for dtype in DTYPES {
        let case = Case::new([rotation.clone(), normed.clone()], sizes, beside, dtype)?;
        let Case { x, dy, weight, cos, sin, .. } = &case;
        near(&case.rotate(x, 1.0)?, &rope::forward(x, cos, sin)?)?;
        near(&case.rotate(dy, -1.0)?, &rope::backward(dy, cos, sin)?)?;
        near(&case.normed_forward()?, &rope::forward_normed(x, weight, PARAMS, cos, sin)?)?;
        for wants_weight in [false, true] {
            let (d_x, dw) = case.normed_backward(wants_weight)?;
            let expected = rope::backward_normed(x, weight, PARAMS, cos, sin, dy, wants_weight)?;
            near(&d_x, &expected.0)?;
            assert_eq!(dw.is_some(), wants_weight);
            if let (Some(dw), Some(expected)) = (dw, expected.1) {
                near(&dw, &expected)?;
            }
        }
    }
    Ok(())
}

#[test]
fn heads_of_models() -> Result<()> {
    for sizes in [[1, 16, 128], [40, 8, 64], [33, 3, 256], [5, 2, 80], [4, 5, 96], [90, 16, 32]] {
        agrees(sizes, 0)?;
    }
    Ok(())
}

#[test]
fn heads_of_any_dimension() -> Result<()> {
    for sizes in [[3, 1, 2], [2, 3, 6], [7, 2, 74], [1, 1, 130]] {
        agrees(sizes, 0)?;
    }
    Ok(())
}

#[test]
fn a_part_of_wider_tokens() -> Result<()> {
    agrees([5, 2, 64], 256)?;
    agrees([5, 2, 64], 3)
}
