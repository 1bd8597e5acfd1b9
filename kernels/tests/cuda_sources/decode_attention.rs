use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use chandler_kernels::attention::Params;
use chandler_kernels::decode_attention::{self, Place, Places};

use crate::buffer::Buffer;
use crate::compare::{DTYPES, random, same, suffix, within};
use crate::emulator::{Program, program_for};

const CAPACITY: usize = 700;
const ROWS: usize = 3;
const PIECE: usize = 128;

struct Case {
    program: Arc<Program>,
    q: Tensor,
    /// Of keys and of values.
    caches: [Tensor; 2],
    fresh: Tensor,
    places: Vec<Place>,
    params: Params,
}

impl Case {
    fn sizes(&self) -> Result<[usize; 3]> {
        let (_, heads, dim) = self.q.dims3()?;
        Ok([heads, self.fresh.dim(1)?, dim])
    }

    fn places(&self) -> Buffer {
        let list: Vec<[u32; 2]> =
            self.places.iter().map(|place| [place.row as u32, place.len as u32]).collect();
        Buffer::of(&list)
    }

    fn pieces(&self) -> usize {
        let window = self.params.window.unwrap_or(usize::MAX);
        let of = |place: &Place| place.len.min(window).div_ceil(PIECE);
        self.places.iter().map(of).max().unwrap_or(0)
    }

    /// `Shape` of the source.
    fn shape(&self) -> Result<[u32; 7]> {
        let [heads, kv_heads, _] = self.sizes()?;
        let Params { scale, softcap, window } = self.params;
        Ok([
            heads as u32,
            kv_heads as u32,
            CAPACITY as u32,
            window.map_or(u32::MAX, |window| window as u32),
            (scale as f32).to_bits(),
            (softcap.unwrap_or(0.0) as f32).to_bits(),
            self.pieces() as u32,
        ])
    }

    fn kernel(&self, name: &str) -> String {
        format!("decode_attention_{name}_{}", suffix(self.q.dtype()))
    }

    fn attend(&self) -> Result<Tensor> {
        let [heads, kv_heads, dim] = self.sizes()?;
        let (tokens, pieces, dtype) = (self.places.len(), self.pieces(), self.q.dtype());
        let (q, places, shape) = (Buffer::of_tensor(&self.q)?, self.places(), self.shape()?);
        let [keys, values] = [&self.caches[0], &self.caches[1]].map(Buffer::of_tensor);
        let (keys, values) = (keys?, values?);
        let partial = Buffer::unset::<f32>(tokens * heads * pieces * (dim + 2));
        let y = Buffer::unset_of(tokens * heads * dim, dtype);
        let group = heads / kv_heads;
        let together = group.next_power_of_two().min(8);
        let grid = [pieces, kv_heads * group.div_ceil(together), tokens];
        let kernel = format!("{}_{together}", self.kernel("piece"));
        let launch = self.program.launch(&kernel, grid, 256);
        let launch = launch.buffer(&q).buffer(&keys).buffer(&values).buffer(&places);
        launch.buffer(&partial).value(shape).run();
        let launch = self.program.launch(&self.kernel("merge"), [heads, tokens, 1], 128);
        launch.buffer(&partial).buffer(&places).buffer(&y).value(shape).run();
        y.tensor(self.q.dims(), dtype)
    }

    fn store(&self) -> Result<Tensor> {
        let [_, kv_heads, _] = self.sizes()?;
        let (cache, fresh) = (Buffer::of_tensor(&self.caches[0])?, Buffer::of_tensor(&self.fresh)?);
        let places = self.places();
        let grid = [kv_heads, self.places.len(), 1];
        let launch = self.program.launch(&self.kernel("store"), grid, 128);
        launch.buffer(&cache).buffer(&fresh).buffer(&places).value(self.shape()?).run();
        cache.tensor(self.caches[0].dims(), self.q.dtype())
    }
}

fn agrees([heads, kv_heads, dim]: [usize; 3], lens: &[usize], params: Params) -> Result<()> {
    let Some(program) = program_for("decode_attention", dim) else { return Ok(()) };
    // Rows of the cache from the last one on, so that they are not the tokens' numbers.
    let place = |(i, len): (usize, &usize)| Place { row: ROWS - 1 - i, len: *len };
    let places: Vec<Place> = lens.iter().enumerate().map(place).collect();
    for dtype in DTYPES {
        let tokens = lens.len();
        let cache = [ROWS, kv_heads, CAPACITY, dim];
        let [q, fresh, keys, values] =
            random(&[&[tokens, heads, dim], &[tokens, kv_heads, dim], &cache, &cache], dtype)?
                .try_into()
                .expect("four");
        let (caches, places) = ([keys, values], places.clone());
        let case = Case { program: program.clone(), q, caches, fresh, places, params };
        let Case { q, caches: [keys, values], fresh, places, .. } = &case;
        let places = Places::new(places.clone(), &Device::Cpu)?;
        let expected = decode_attention::forward(q, keys, values, &places, params)?;
        within(&case.attend()?, &expected, 4.0)?;
        let stored = case.store()?;
        decode_attention::store(keys, fresh, &places)?;
        same(&stored, keys)?;
    }
    Ok(())
}

const PLAIN: Params = Params { scale: 0.3, softcap: None, window: None };

#[test]
fn one_token_and_several_pieces() -> Result<()> {
    agrees([2, 2, 64], &[1], PLAIN)?;
    agrees([4, 2, 128], &[128, 129, 700], PLAIN)
}

#[test]
fn a_window_and_a_cap() -> Result<()> {
    agrees([4, 2, 80], &[300, 7], Params { window: Some(1), ..PLAIN })?;
    agrees([4, 2, 80], &[300, 7], Params { window: Some(150), softcap: Some(2.0), ..PLAIN })
}

#[test]
fn any_number_of_heads_to_a_key() -> Result<()> {
    for group in [1, 2, 3, 4, 5, 7, 8] {
        agrees([2 * group, 2, 64], &[191, 34], PLAIN)?;
    }
    agrees([7, 1, 128], &[131], Params { softcap: Some(3.0), ..PLAIN })
}

#[test]
fn more_heads_to_a_key_than_go_together() -> Result<()> {
    agrees([11, 1, 256], &[200], PLAIN)?;
    agrees([17, 1, 64], &[130, 2], PLAIN)
}

/// Of less than a load of the lanes that share a key, of loads and a part, and of the most; with
/// threads that are too few for a group, and groups that values are too few for.
#[test]
fn heads_of_any_dimension() -> Result<()> {
    for dim in [8, 40, 200, 512] {
        agrees([3, 1, dim], &[150], PLAIN)?;
        agrees([1, 1, dim], &[63, 128], Params { window: Some(61), ..PLAIN })?;
    }
    Ok(())
}
