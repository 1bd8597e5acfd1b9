//! The connection to a device, and the plans that were made for it.
#![expect(unsafe_code, reason = "calls into a C library")]

use std::ops::Range;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::{Device, Error, Result};

use super::super::attention::Inputs;
use super::super::device::capability;
use super::check;
use super::descriptor::Handle;
use super::graph::{Pass, Plan, Shape, Target};
use super::library::functions;
use super::run::Run;
use super::share::room;
use crate::attention::Params;
use crate::device::{is_lost, tried};
use crate::memory;

/// Of one stream.
pub(super) struct Session {
    handle: Handle,
    /// Those that are of use, and the shapes for which none is.
    plans: Vec<(Shape, Option<Plan>)>,
}

// SAFETY: the library lets any thread use a handle, one at a time; its only use is under the lock of all.
unsafe impl Send for Session {}

/// A stream, and its session where the library has opened one.
type Known = (Arc<CudaStream>, Option<Session>);

/// All streams that were used. No session is ever closed, as no device is.
static SESSIONS: Mutex<Vec<Known>> = Mutex::new(Vec::new());

/// The shape of a plan that has room for these documents. A few shapes serve all: sizes are powers of two.
pub(super) fn shape(
    pass: Pass,
    inputs: &Inputs,
    documents: &[Range<usize>],
    params: Params,
) -> Shape {
    let longest = documents.iter().map(Range::len).max().unwrap_or(0);
    let tokens = documents.last().map_or(0, |last| last.end) - documents[0].start;
    Shape {
        pass,
        heads: inputs.q.dims()[1],
        kv_heads: inputs.k.dims()[1],
        dim: inputs.q.dims()[2],
        has_window: params.window.is_some_and(|window| window < longest),
        has_softcap: params.softcap.is_some(),
        documents: documents.len().next_power_of_two(),
        longest: longest.next_power_of_two(),
        // A forward pass has room for any number.
        tokens: if pass == Pass::Backward { room(tokens) } else { 0 },
    }
}

impl Session {
    /// `work` with the session of this device's stream; `None` where the library opens none.
    pub(super) fn with<T>(
        device: &Device,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<Option<T>> {
        let stream = device.as_cuda_device()?.cuda_stream();
        let mut sessions = SESSIONS.lock().unwrap_or_else(PoisonError::into_inner);
        let known = sessions.iter().position(|(of, _)| Arc::ptr_eq(of, &stream));
        let at = known.unwrap_or(sessions.len());
        if known.is_none() {
            let session = match Self::open(&stream) {
                Ok(session) => Some(session),
                Err(error) => {
                    tracing::warn!(%error, "cuDNN does not start: attention is by chandler's kernels");
                    None
                }
            };
            sessions.push((stream, session));
        }
        sessions[at].1.as_mut().map(work).transpose()
    }

    fn open(stream: &CudaStream) -> Result<Self> {
        let library = functions().map_err(Error::msg)?;
        stream.context().bind_to_thread().w()?;
        let mut handle = ptr::null_mut();
        // SAFETY: there is room for one; the thread has the device's context.
        library.check(unsafe { (library.create)(&raw mut handle) }, "a handle")?;
        // SAFETY: the stream lives as long as the session, beside which it is kept.
        let status = unsafe { (library.set_stream)(handle, stream.cu_stream().cast()) };
        library.check(status, "the stream of a handle")?;
        tracing::info!(version = library.version(), "attention of long documents is cuDNN's");
        Ok(Self { handle: Handle(handle), plans: vec![] })
    }

    /// What runs this shape; made, and compared with the own kernels, where it is a new one. `None` where
    /// the library has nothing for it that is right.
    pub(super) fn run<'a>(
        &'a mut self,
        shape: &'a Shape,
        scale: f64,
        device: &Device,
    ) -> Result<Option<Run<'a>>> {
        let known = self.plans.iter().position(|(of, _)| of == shape);
        let at = known.unwrap_or(self.plans.len());
        if known.is_none() {
            let plan = self.plan(shape, scale, device)?;
            self.plans.push((*shape, plan));
        }
        let plan = self.plans[at].1.as_ref();
        Ok(plan.map(|plan| Run { handle: self.handle, plan, shape, is_tried: false }))
    }

    fn plan(&self, shape: &Shape, scale: f64, device: &Device) -> Result<Option<Plan>> {
        let plan = match Plan::new(shape, &Target::Handle(self.handle)) {
            Ok(plan) => plan,
            Err(error) => {
                tracing::info!(?shape, %error, "cuDNN does not take this: chandler's kernels do");
                return Ok(None);
            }
        };
        let run = Run { handle: self.handle, plan: &plan, shape, is_tried: true };
        let what = format!(
            "cuDNN {} on {}: {shape:?}",
            functions().map_err(Error::msg)?.version(),
            capability(device)?
        );
        let well = || !is_lost(device);
        let Some(found) = tried(&what, || check::complaint(&run, shape, scale, device), well)
        else {
            return Ok(None);
        };
        let complaint = match found {
            // Memory that is not there is another matter than a library that fails.
            Err(error) if memory::lacking(&error).is_none() => Some(error.to_string()),
            found => found?,
        };
        if let Some(complaint) = complaint {
            tracing::warn!(?shape, complaint, "cuDNN is left alone: chandler's kernels do this");
            return Ok(None);
        }
        Ok(Some(plan))
    }
}
