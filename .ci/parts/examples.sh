source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Run the examples, the second one with fewer seeds and epochs.
torch_environment
mkdir "$work/torch-run"
cp -r "$work"/unpacked/{tests,examples,pyproject.toml} "$work/torch-run"
cd "$work/torch-run"
python=$work/torch/bin/python
"$python" examples/train_digits.py | tee digits.txt
"$python" examples/train_mnist_torch.py ${EXAMPLES---seeds 1 --epochs 6} --onnx mnist.onnx | tee mnist.txt
"$python" "$checks/examples.py" digits.txt mnist.txt
[[ -s train_digits.png && -s train_mnist_torch.png && -s mnist.onnx ]]
