"""cuda.bindings.nvrtc with the calls of cupy.cuda.nvrtc that ops/_nvrtc makes, so that tests need no CuPy."""

from cuda.bindings import nvrtc


class NVRTCError(RuntimeError):
    pass


def _said(answer):
    error, *values = answer
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise NVRTCError(error.name)
    return values[0] if len(values) == 1 else tuple(values)


def _filled(size, fill, program):
    buffer = b" " * _said(size(program))
    _said(fill(program, buffer))
    return buffer


def getVersion():
    return _said(nvrtc.nvrtcVersion())


def getSupportedArchs():
    return list(_said(nvrtc.nvrtcGetSupportedArchs()))


def createProgram(text, name, headers, include_names):
    return _said(nvrtc.nvrtcCreateProgram(text.encode(), name.encode(), 0, [], []))


def addNameExpression(program, expression):
    _said(nvrtc.nvrtcAddNameExpression(program, expression.encode()))


def compileProgram(program, options):
    _said(nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options]))


def getLoweredName(program, expression):
    return _said(nvrtc.nvrtcGetLoweredName(program, expression.encode())).decode()


def getCUBIN(program):
    return _filled(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)


def getPTX(program):
    return _filled(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).decode()


def getProgramLog(program):
    return _filled(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0").decode()


def destroyProgram(program):
    _said(nvrtc.nvrtcDestroyProgram(program))
