"""Build the stand-in for CUDA for the installed torch: python scripts/fake_gpu/build.py FOLDER

It consists of two libraries: libfakecuda.so in place of the CUDA runtime, cuBLAS and cuDNN, and drv/libcuda.so.1 in
place of NVIDIA's driver. Functions whose results matter are written in runtime.cpp and in the tables below; all others
are generated from the names that torch's libraries and CUDA's header refer to, and only return success.

Needs g++, nm and a torch built for CUDA 13, whose triton brings CUDA's headers. torch 2.11 and 2.14 are known to work.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TORCH_LIBRARIES = ("libtorch_cuda", "libc10_cuda", "libtorch_python", "libtorch_cuda_linalg")

# cuDNN's answers about convolutions: one algorithm, no workspace
ALGORITHM = (
    "{{memset(p,0,sizeof*p);p->algo={number};p->time=1;p->det=1;p->math=3;*k=1;return 0;}}"  # filled by `convolution`
)
STRUCT = "struct {name}{{int algo,status;float time;size_t memory;int det,math,res[3];}};"
NO_WORKSPACE = "{*s=0;return 0;}"
BATCH_NORM = {
    "cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize": "void*h,int m,int o,void*a,void*b,void*c,void*d,void*e",
    "cudnnGetBatchNormalizationTrainingExReserveSpaceSize": "void*h,int m,int o,void*a,void*b",
    "cudnnGetBatchNormalizationBackwardExWorkspaceSize": (
        "void*h,int m,int o,void*a,void*b,void*c,void*d,void*e,void*f,void*g"
    ),
}
COMPUTING = re.compile(
    "gemm|Gemm|Matmul$|gemv|Convolution(Forward|BackwardData|BackwardFilter|BiasActivationForward)$|trsm"
    "|BatchNormalization"
)
RUNTIME_ANSWERS = {
    "cublasGetMathMode": "(void*h,int*m){*m=0;return 0;}",
    "cublasGetPointerMode_v2": "(void*h,int*m){*m=0;return 0;}",
    "cublasLtMatmulAlgoGetHeuristic": (
        "(void*h,void*a,void*b,void*c,void*d,void*e,void*f,int n,char*r,int*k){memset(r,0,80);*k=1;return 0;}"
    ),
    "cudnnGetProperty": "(int t,int*v){*v=t==0?9:t==1?24:0;return 0;}",
    **{name: f"({arguments},size_t*s){NO_WORKSPACE}" for name, arguments in BATCH_NORM.items()},
}
NAMED_ELSEWHERE = {"cudnnGetVersion", "cudnnGetCudartVersion", "cublasLtGetVersion"}

DRIVER_ANSWERS = {
    "cuInit": "(unsigned f){return 0;}",
    "cuDriverGetVersion": "(int*v){*v=13000;return 0;}",
    "cuDeviceGetCount": "(int*n){*n=1;return 0;}",
    "cuDeviceGet": "(int*d,int i){*d=i;return 0;}",
    "cuDeviceGetName": '(char*s,int n,int d){strncpy(s,"stand-in for an H100",n);return 0;}',
    "cuCtxGetCurrent": "(void**c){*c=D;return 0;}",
    "cuCtxGetDevice": "(int*d){*d=0;return 0;}",
    "cuDevicePrimaryCtxRetain": "(void**c,int d){*c=D;return 0;}",
    "cuDevicePrimaryCtxGetState": "(int d,unsigned*f,int*a){*f=0;*a=1;return 0;}",
    "cuModuleLoadData": "(void**m,const void*p){*m=D;return 0;}",
    "cuModuleLoadDataEx": "(void**m,const void*p,unsigned n,void*o,void**v){*m=D;return 0;}",
    "cuModuleLoad": "(void**m,const char*p){*m=D;return 0;}",
    "cuModuleGetFunction": "(void**f,void*m,const char*s){*f=(void*)(handle+=16);return 0;}",
    "cuFuncGetAttribute": "(int*v,int a,void*f){*v=a==4?32:a==0?1024:0;return 0;}",
    "cuDeviceGetAttribute": "(int*v,int a,int d){return cudaDeviceGetAttribute(v,a,d);}",
    "cuLaunchKernel": "(){fake_launch();return 0;}",
    "cuLaunchKernelEx": "(){fake_launch();return 0;}",
    "cuOccupancyMaxActiveClusters": "(int*n,void*f,void*c){*n=1;return 0;}",
    "cuGetErrorString": '(int e,const char**s){*s="stand-in";return 0;}',
    "cuPointerGetAttribute": "(void*v,int a,unsigned long long p){*(unsigned long long*)v=p;return 0;}",
    "cuGetProcAddress": "(const char*s,void**f,int v,unsigned long long l){*f=dlsym(0,s);return 0;}",
    "cuGetProcAddress_v2": (
        "(const char*s,void**f,int v,unsigned long long l,int*q){*f=dlsym(0,s);if(q)*q=0;return 0;}"
    ),
}


def convolution_answers() -> dict[str, str]:
    """Return declarations of cuDNN's queries about convolutions, by name; structs precede the function."""
    answers = {}
    for number, kind in enumerate(("Forward", "BackwardData", "BackwardFilter")):
        answer = ALGORITHM.format(number=min(number, 1))
        workspace, found, tried = (
            f"cudnnGetConvolution{kind}WorkspaceSize",
            f"cudnnGetConvolution{kind}Algorithm_v7",
            f"cudnnFindConvolution{kind}AlgorithmEx",
        )
        answers[workspace] = f"int {workspace}(void*h,void*a,void*b,void*c,void*d,int e,size_t*s){NO_WORKSPACE}"
        answers[found] = (
            f"{STRUCT.format(name=found + 'P')}"
            f"int {found}(void*h,void*a,void*b,void*c,void*d,int n,int*k,struct {found}P*p){answer}"
        )
        answers[tried] = (
            f"{STRUCT.format(name=tried + 'P')}int {tried}(void*h,void*a,void*b,void*c,void*d,void*e,void*f,void*g,"
            f"int n,int*k,struct {tried}P*p,void*w,size_t s){answer}"
        )
    return answers


def runtime_source(libraries: list[Path], written: set[str]) -> str:
    """Return C source of all CUDA functions that torch's libraries require and that are not in runtime.cpp."""
    names: set[str] = set()
    for library in libraries:
        listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
        names |= {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()}
    answers = convolution_answers()
    lines = ["#include <stddef.h>", "#include <string.h>", "void fake_blas();", "static char D[4096];"]
    lines.append('const char*cudnnGetErrorString(int s){return "stand-in";}')
    for name in sorted(names - written - NAMED_ELSEWHERE - {"cudnnGetErrorString"}):
        if not re.match(r"(__)?cuda[A-Z]|cublas|cudnn", name):
            continue
        if name in answers:
            lines.append(answers[name])
        elif name in RUNTIME_ANSWERS:
            lines.append(f"int {name}{RUNTIME_ANSWERS[name]}")
        elif "Create" in name and name.startswith(("cublas", "cudnn")):
            lines.append(f"int {name}(void**p){{*p=D;return 0;}}")
        elif COMPUTING.search(name):
            lines.append(f"int {name}(){{fake_blas();return 0;}}")
        else:
            lines.append(f"int {name}(){{return 0;}}")
    return "\n".join(lines) + "\n"


def driver_source(header: str) -> str:
    """Return C source of the driver's functions, from the text of cuda.h."""
    names = set(re.findall(r"CUDAAPI\s+(cu[A-Z]\w+)\s*\(", header)) | set(DRIVER_ANSWERS)
    for pair in re.findall(r"#define\s+(cu[A-Z]\w+)\s+(cu[A-Z]\w+_v\d+|cu\w+_ptsz)\b", header):
        names |= set(pair)
    lines = ["#include <string.h>", "static char D[4096];static long long handle=0x100000;", "void fake_launch();"]
    lines += ["int cudaDeviceGetAttribute(int*,int,int);", "void*dlsym(void*,const char*);"]
    lines += [f"int {name}{DRIVER_ANSWERS.get(name, '(){return 0;}')}" for name in sorted(names)]
    return "\n".join(lines) + "\n"


def build(folder: Path) -> None:
    """Build both libraries into the folder.

    Raises:
        SystemExit: no compiler, or a torch without CUDA 13.
    """
    import torch

    missing = [tool for tool in ("g++", "gcc", "nm") if shutil.which(tool) is None]
    if missing:
        sys.exit(f"The stand-in needs {', '.join(missing)}. Install a C++ compiler and binutils.")
    if not (torch.version.cuda or "").startswith("13"):
        sys.exit(
            f"The stand-in needs a torch built for CUDA 13; torch {torch.__version__} is for {torch.version.cuda}."
        )
    import triton

    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    libraries = [Path(torch.__file__).parent / "lib" / f"{name}.so" for name in TORCH_LIBRARIES]
    (folder / "drv").mkdir(parents=True, exist_ok=True)
    written = set(re.findall(r"\b((?:__)?cuda\w+)\s*\(", (HERE / "runtime.cpp").read_text()))
    (folder / "runtime.c").write_text(runtime_source(libraries, written))
    (folder / "driver.c").write_text(driver_source((include / "cuda.h").read_text()))

    def compiled(*command: object) -> None:
        subprocess.run([*map(str, command)], cwd=folder, check=True)

    compiled("g++", "-c", "-O1", "-fPIC", "-w", f"-I{include}", HERE.resolve() / "runtime.cpp", "-o", "written.o")
    compiled("gcc", "-c", "-O1", "-fPIC", "-w", "-fno-builtin", "runtime.c", "-o", "generated.o")
    compiled("gcc", "-shared", "-fPIC", "-w", "-fno-builtin", "driver.c", "-o", "libcuda.so.new")
    os.replace(folder / "libcuda.so.new", folder / "drv" / "libcuda.so.1")
    link = folder / "drv" / "libcuda.so"
    link.unlink(missing_ok=True)
    link.symlink_to("libcuda.so.1")
    # running processes keep the opened library
    compiled("g++", "-shared", "-o", "libfakecuda.so.new", "written.o", "generated.o", "-ldl")
    os.replace(folder / "libfakecuda.so.new", folder / "libfakecuda.so")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of the libraries")
    build(parser.parse_args().folder.resolve())
