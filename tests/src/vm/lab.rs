//! What all VMs stand on: looked for, downloaded and compiled once.

use tokio::sync::OnceCell;

use super::{
    Machine, Product, VmError,
    image::Busybox,
    kernel::{self, Kernel},
};

/// What all VMs of this process stand on: one per process.
#[derive(Debug)]
pub struct Lab {
    /// The binaries under test.
    pub product: Product,
    /// What this computer lends.
    pub machine: Machine,
    pub(super) kernel: Kernel,
    pub(super) busybox: Busybox,
}

impl Lab {
    /// Prepares the lab, which takes minutes the first time and well under a second later.
    ///
    /// # Errors
    ///
    /// The first thing that is missing or fails.
    pub async fn prepare() -> Result<&'static Self, VmError> {
        static LAB: OnceCell<Lab> = OnceCell::const_new();
        LAB.get_or_try_init(async || {
            let busybox = Busybox::find().await?;
            let kernel = kernel::prepare().await?;
            let machine = Machine::find(&kernel, &busybox).await?;
            let product = Product::build().await?;
            Ok(Self {
                product,
                machine,
                kernel,
                busybox,
            })
        })
        .await
    }
}
